import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from s3 import S3, _moto, s3  # noqa: F401

from bitlm import storage
from bitlm.artifacts.record import redacted
from bitlm.config import CorpusConfig, TokenizerConfig, configure
from bitlm.config.presets import PRESETS
from bitlm.data.sources import docstrings
from bitlm.data.sources.files import check_unchanged
from bitlm.data.sources.state import (
    Source,
    corpus_identity,
    corpus_location,
    read_tokenizer,
    resolve,
    text_source,
    tokenizer_identity,
)
from bitlm.errors import ConfigError, SourceError
from bitlm.steps import steps


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BITLM_CACHE", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("b/two.parquet", "a/one.parquet", "a/notes.txt", "c.jsonl.gz", "d.jsonl"):
        path = tmp_path / "source" / name
        path.parent.mkdir(exist_ok=True, parents=True)
        path.write_bytes(name.encode())
    return tmp_path / "source"


def state_of(source: Path | str) -> dict:
    return corpus_identity(CorpusConfig(source=str(source)))["source_state"]


def paths_of(source: str) -> list[str]:
    state = state_of(source)
    files = resolve(text_source(CorpusConfig(source=source)), state).files
    assert (state["count"], state["bytes"]) == (len(files), sum(file.bytes for file in files))
    assert all(storage.read_bytes(file.url).decode().endswith(os.path.basename(file.path)) for file in files)
    return [file.path for file in files]


def test_a_file_a_folder_a_glob_and_a_url(folder: Path) -> None:
    assert paths_of(str(folder)) == ["a/one.parquet", "b/two.parquet", "c.jsonl.gz", "d.jsonl"]
    assert paths_of(f"{folder}/") == ["a/one.parquet", "b/two.parquet", "c.jsonl.gz", "d.jsonl"]
    assert paths_of(f"{folder}/*/*.parquet") == ["a/one.parquet", "b/two.parquet"]
    assert paths_of(f"{folder}/d.jsonl") == ["d.jsonl"]
    assert paths_of(f"file://{folder}/a") == ["one.parquet"]
    for name in ("x/1.parquet", "x/2.jsonl", "x/3.txt"):
        storage.write_atomic(f"memory://sources/{name}", f"memory://{name}".encode())
    assert paths_of("memory://sources/x") == ["1.parquet", "2.jsonl"]
    assert paths_of("memory://sources/*/*.parquet") == ["x/1.parquet"]
    assert paths_of("memory://sources/x/1.parquet") == ["1.parquet"]


def test_the_same_content_is_the_same_state(folder: Path, tmp_path: Path) -> None:
    before = state_of(folder)
    assert json.loads(json.dumps(before)) == before
    assert set(before) == {"kind", "count", "bytes", "sha256"}
    for path in folder.rglob("*.parquet"):
        os.utime(path, (1, 1))
    assert state_of(folder) == before
    shutil.copytree(folder, tmp_path / "copy", copy_function=shutil.copyfile)
    assert state_of(tmp_path / "copy") == before
    identities = [corpus_identity(CorpusConfig(source=str(place))) for place in (folder, tmp_path / "copy")]
    assert identities[0] == identities[1]
    assert corpus_location(CorpusConfig(source=str(tmp_path / "copy"))) == {"source": str(tmp_path / "copy")}


@pytest.mark.parametrize(
    "change",
    [
        lambda folder: (folder / "d.jsonl").write_bytes(b"d.jsonL"),
        lambda folder: (folder / "d.jsonl").write_bytes(b"longer than before"),
        lambda folder: (folder / "d.jsonl").rename(folder / "e.jsonl"),
        lambda folder: (folder / "d.jsonl").unlink(),
        lambda folder: shutil.copyfile(folder / "d.jsonl", folder / "f.jsonl"),
    ],
)
def test_another_content_is_another_state(folder: Path, change: Callable[[Path], None]) -> None:
    before = state_of(folder)
    files = resolve(Source("corpus.source", str(folder)), before).files
    for file in files:
        check_unchanged(file)
    change(folder)
    assert state_of(folder) != before
    with pytest.raises(SourceError, match="has changed since this run began"):
        resolve(Source("corpus.source", str(folder)), before)


def test_a_file_that_changed_is_named(folder: Path) -> None:
    file = resolve(Source("corpus.source", f"{folder}/d.jsonl"), state_of(f"{folder}/d.jsonl")).files[0]
    os.utime(file.url, (1, 1))
    check_unchanged(file)
    Path(file.url).write_bytes(b"d.jsonL")
    with pytest.raises(SourceError, match=r"d\.jsonl changed since the corpus was made"):
        check_unchanged(file)


def test_files_that_are_no_text_do_not_count(folder: Path) -> None:
    before = state_of(folder)
    (folder / "a" / "notes.txt").write_text("more")
    assert state_of(folder) == before


def test_a_large_file_at_another_place_is_the_same(tmp_path: Path) -> None:
    texts = pa.table({"text": [os.urandom(500).hex() for _ in range(4000)]})
    for name in ("here", "there", "other"):
        (tmp_path / name).mkdir()
        pq.write_table(texts if name != "other" else texts.slice(1), tmp_path / name / "t.parquet")
    assert (tmp_path / "here" / "t.parquet").stat().st_size > 2**21
    states = [state_of(tmp_path / name) for name in ("here", "there", "other")]
    assert states[0] == states[1] != states[2]


def test_a_folder_of_a_store_is_listed_without_a_request_for_each_file(s3: S3) -> None:  # noqa: F811
    for i in range(20):
        storage.write_atomic(storage.join(s3.root, f"text/{i:02d}.parquet"), b"text %d" % i)
    s3.requests.clear()
    before = state_of(storage.join(s3.root, "text"))
    assert before["count"] == 20
    assert len(s3.requests) < 10
    glob = state_of(storage.join(s3.root, "text/*.parquet"))
    assert glob == before
    assert len(s3.requests) < 20
    storage.write_atomic(storage.join(s3.root, "text/00.parquet"), b"text 0")
    assert state_of(storage.join(s3.root, "text")) == before
    files = resolve(Source("corpus.source", storage.join(s3.root, "text")), before).files
    check_unchanged(files[0])
    storage.write_atomic(storage.join(s3.root, "text/00.parquet"), b"text X")
    assert state_of(storage.join(s3.root, "text")) != before
    with pytest.raises(SourceError, match="changed since the corpus was made"):
        check_unchanged(files[0])


@pytest.mark.parametrize("field", ["source", "summaries"])
def test_a_missing_source_is_an_error_that_names_it(folder: Path, field: str) -> None:
    for source in (f"{folder}/absent.parquet", f"{folder}/*.csv", f"{folder}/absent", "memory://absent/folder"):
        with pytest.raises(SourceError, match="there is no such file or folder"):
            corpus_identity(CorpusConfig(**{field: source}))
    with pytest.raises(SourceError, match=r"none of the 1 files there is usable"):
        corpus_identity(CorpusConfig(**{field: f"{folder}/a/notes.txt"}))


def test_a_url_with_a_credential_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"corpus\.source = s3://bucket/text: the URL carries a credential"):
        corpus_location(CorpusConfig(source="s3://key:secret@bucket/text"))
    for url in (
        "https://token@host/x",
        "http://a:b@c@host/x",
        "https://host/x?AWSAccessKeyId=a",
        "https://host/x?n=1&auth=a",
    ):
        with pytest.raises(ConfigError, match=r"corpus\.source = .*host/x.*: the URL carries a credential"):
            steps(configure("tiny", [f"corpus.source={url}"]))
    with pytest.raises(ConfigError, match=r"tokenizer\.source = s3://bucket/t\.json: the URL carries a credential"):
        tokenizer_identity(TokenizerConfig(source="s3://key:secret@bucket/t.json"))


def test_urls_with_queries_are_recorded_without_and_still_told_apart() -> None:
    urls = ("http://host/x.jsonl", "http://host/x.jsonl?version=1", "http://host/x.jsonl?version=2")
    locations = [corpus_location(CorpusConfig(source=url)) for url in urls]
    assert locations[0] == {"source": urls[0]}
    assert len({location["source"] for location in locations}) == 3
    for location in locations:
        assert redacted(location) == location
        assert "version" not in location["source"]


def test_the_identity_of_docstrings_is_the_configuration_and_the_packages() -> None:
    config = CorpusConfig(max_documents=7)
    state = docstrings.state()
    expected = {**config.model_dump(exclude={"name"}), "source_state": state, "summaries_state": state}
    assert corpus_identity(config) == expected
    assert corpus_location(config) == {}


def test_a_ready_tokenizer_is_its_content(tmp_path: Path) -> None:
    for name in ("one", "other"):
        (tmp_path / name).write_bytes(b"{}")
    configs = [TokenizerConfig(source=str(tmp_path / name)) for name in ("one", "other")]
    identities = [tokenizer_identity(config) for config in configs]
    assert identities[0] == identities[1]
    assert tokenizer_identity(configs[0].model_copy(update={"end_token": "<end>"})) != identities[0]
    assert read_tokenizer(configs[0]) == b"{}"
    (tmp_path / "one").write_bytes(b"{ }")
    assert tokenizer_identity(configs[0]) != identities[0]
    with pytest.raises(SourceError, match="absent"):
        tokenizer_identity(TokenizerConfig(source=str(tmp_path / "absent")))


def test_presets_pin_what_they_read_from_the_hub() -> None:
    for name, preset in PRESETS.items():
        sections = preset()
        read = [
            (sections.corpus.source, sections.corpus.revision),
            (sections.corpus.summaries, sections.corpus.summaries_revision),
            (sections.tokenizer.source, sections.tokenizer.revision),
        ]
        for source, revision in read:
            if source.startswith("hub:"):
                assert re.fullmatch("[0-9a-f]{40}", revision or ""), (name, source)
