import copy
import json
import math
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from made import draft, make

from bitlm.artifacts import FileEntry, Store, fingerprint
from bitlm.artifacts.record import code_version, decode, encode, redacted_argv
from bitlm.errors import ArtifactError, ConfigError

leaves = (
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8)
)
trees = st.recursive(
    leaves,
    lambda kids: st.lists(kids, max_size=4) | st.dictionaries(st.text(max_size=5), kids, max_size=4),
    max_leaves=12,
)
identities = st.dictionaries(st.text(max_size=5), trees, min_size=1, max_size=5)


def of(identity: dict[str, Any]) -> str:
    return fingerprint("stage", 1, identity, {})


def paths(value: Any, at: tuple = ()) -> list[tuple]:
    if isinstance(value, dict):
        return [p for key, item in value.items() for p in paths(item, (*at, key))]
    if isinstance(value, list):
        return [p for i, item in enumerate(value) for p in paths(item, (*at, i))]
    return [at]


def reverse_keys(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: reverse_keys(value[key]) for key in reversed(value)}
    return [reverse_keys(item) for item in value] if isinstance(value, list) else value


def same(a: Any, b: Any) -> bool:
    return type(a) is type(b) and repr(a) == repr(b)


@given(identities)
def test_order_of_keys_and_kind_of_list_do_not_matter(identity: dict[str, Any]) -> None:
    assert of(reverse_keys(identity)) == of(identity)
    assert of(json.loads(json.dumps(identity))) == of(identity)


@given(identities, st.data())
def test_any_changed_leaf_changes_it(identity: dict[str, Any], data: st.DataObject) -> None:
    where = paths(identity)
    if not where:
        return
    *parents, last = data.draw(st.sampled_from(where))
    changed = copy.deepcopy(identity)
    holder = changed
    for key in parents:
        holder = holder[key]
    new = data.draw(leaves.filter(lambda value: not same(value, holder[last])))
    holder[last] = new
    assert of(changed) != of(identity)


def test_what_it_depends_on() -> None:
    base = fingerprint("s", 1, {"k": 1}, {"in": "f"})
    others = [
        fingerprint("t", 1, {"k": 1}, {"in": "f"}),
        fingerprint("s", 2, {"k": 1}, {"in": "f"}),
        fingerprint("s", 1, {"k": 1.0}, {"in": "f"}),
        fingerprint("s", 1, {"k": True}, {"in": "f"}),
        fingerprint("s", 1, {"k": "1"}, {"in": "f"}),
        fingerprint("s", 1, {"k": 1}, {"in": "g"}),
        fingerprint("s", 1, {"k": 1}, {"out": "f"}),
        fingerprint("s", 1, {"k": 1}, {}),
    ]
    assert len({base, *others}) == len(others) + 1
    assert of({"k": (1, 2)}) == of({"k": [1, 2]})


def test_it_never_changes() -> None:
    # A recorded value: another one would make every artifact anew.
    identity = {"b": [1, 2.5, None, True], "a": {"ü": "x"}}
    assert fingerprint("tokens", 1, identity, {"corpus": "c"}) == (
        "73037e3908ef6a904685c91555fb49042042b227b84b2b53a5a53c9261fecd52"
    )


@pytest.mark.parametrize(
    "value",
    [math.nan, math.inf, {1}, b"x", object(), Path("x"), datetime.now(UTC), {1: "x"}, 1j],
    ids=lambda value: type(value).__name__,
)
def test_a_value_without_a_stable_form_is_refused_by_its_key(value: Any) -> None:
    with pytest.raises(TypeError, match=r"identity\.outer\.1"):
        of({"outer": [0, value]})


@pytest.mark.parametrize("url", ["https://me:pw@host/x", "s3://b/x?X-Amz-Signature=abc", "https://h/x?a=1&api_key=k"])
def test_a_credential_in_the_identity_is_refused(url: str) -> None:
    with pytest.raises(ConfigError, match=r"corpus\.source = .*credential") as raised:
        of({"corpus": {"source": url}})
    for secret in ("pw", "abc", "=k"):
        assert secret not in str(raised.value)
    of({"corpus": {"source": "https://host/x?rows=10", "separator": "a@b: ?"}})


@pytest.mark.parametrize("path", ["../x", "/x", "a//b", "a/./b", "a/../../b", ""])
def test_a_file_outside_the_artifact_is_refused(path: str) -> None:
    with pytest.raises(ValueError, match="is not a path inside"):
        FileEntry(path=path, bytes=1, sha256="0" * 64)


def test_every_flipped_byte_of_a_record_is_refused(local: Store) -> None:
    record = make(local)
    data = encode(record)
    assert decode(data, record.id) == record
    for i in range(len(data)):
        damaged = data[:i] + bytes([data[i] ^ 0x04]) + data[i + 1 :]
        with pytest.raises(ArtifactError, match=f"{record.id}: artifact.json"):
            decode(damaged, record.id)
    for damaged in (b"", data[:-1], data[1:], data + b"\n", data[: len(data) // 2]):
        with pytest.raises(ArtifactError, match=f"{record.id}: artifact.json"):
            decode(damaged, record.id)
    with pytest.raises(ArtifactError, match=r"corpus/other@v1: artifact.json is the record of corpus/tiny@v1"):
        decode(data, "corpus/other@v1")


def test_a_record_tells_what_made_it(local: Store) -> None:
    record = make(local)
    assert record.code["version"]
    assert set(record.code) == {"version", "commit", "dirty"}
    assert record.packages["torch"]
    assert record.seconds >= 0
    assert record.finished >= record.started
    assert record.execution == {"num_workers": 2}
    assert [entry.path for entry in record.files] == ["a.bin", "deep/er/b.bin", "empty"]


def test_no_secret_is_recorded(local: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    argv = [
        "bitlm",
        "--set",
        "x.api_key=S3CR",
        "--token",
        "S3CR",
        "AWS_SECRET_ACCESS_KEY=S3CR",
        "s3://u:S3CR@h/b?sig=S3CR",
        "--password=S3CR",
        "--set",
        "tokens.unit_bytes=4",
        "--input",
        "tokens=tokens/tiny@v1",
        "corpus.source=https://u:S3CR@h/p",
    ]
    shown = redacted_argv(argv)
    assert "S3CR" not in " ".join(shown)
    for kept in ("bitlm", "tokens.unit_bytes=4", "tokens=tokens/tiny@v1", "corpus.source=https://h/p"):
        assert kept in shown
    monkeypatch.setattr("sys.argv", argv)
    record = make(local, draft(execution={"address": ["ray://u:S3CR@host"]}))
    assert b"S3CR" not in encode(record)


def test_without_git_there_is_no_commit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    found = code_version.__wrapped__()
    assert found["commit"] is None
    assert found["dirty"] is None
    assert found["version"]
