import json
from pathlib import Path
from typing import Any

import pytest
from made import draft, make

from bitlm import storage
from bitlm.artifacts import Record, Store
from bitlm_flows.cli import main


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path / "root"))


@pytest.fixture
def made(store: Store) -> list[Record]:
    corpus = make(store)
    tokens = make(store, draft("tokens", inputs={"corpus": corpus}))
    return [corpus, tokens, make(store, draft("tokens", identity={"size": 2}, inputs={"corpus": corpus}))]


def call(*words: str) -> int:
    return main(["artifacts", *words])


def answer(capsys: pytest.CaptureFixture[str], store: Store, *words: str, code: int = 0) -> Any:
    assert call(*words, "--root", store.root, "--json") == code
    return json.loads(capsys.readouterr().out)


def test_list(store: Store, made: list[Record], capsys: pytest.CaptureFixture[str]) -> None:
    assert [one["id"] for one in answer(capsys, store, "list")] == [record.id for record in made]
    first, second = answer(capsys, store, "list", "tokens/tiny")
    assert second["id"] == "tokens/tiny@v2"
    assert Path(first["path"]).is_dir()
    assert first["inputs"] == {"corpus": "corpus/tiny@v1"}
    assert "no artifact pretrain" in answer(capsys, store, "list", "pretrain", code=1)["error"]


def test_show_lineage_diff(store: Store, made: list[Record], capsys: pytest.CaptureFixture[str]) -> None:
    shown = answer(capsys, store, "show", "tokens/tiny")
    assert shown["id"] == "tokens/tiny@v2"
    assert shown["fingerprint"] == made[2].fingerprint
    assert [one["id"] for one in answer(capsys, store, "lineage", "tokens/tiny@v1")] == [
        "corpus/tiny@v1",
        "tokens/tiny@v1",
    ]
    changes = {
        one["key"]: (one["old"], one["new"]) for one in answer(capsys, store, "diff", "tokens/tiny@v1", "tokens/tiny")
    }
    assert changes["tokens.size"] == (1, 2)
    for words in (("show", "tokens/nope"), ("lineage", "tokens/nope"), ("diff", "tokens/tiny", "tokens/nope")):
        assert "no artifact tokens/nope" in answer(capsys, store, *words, code=1)["error"]


def test_verify(store: Store, made: list[Record], capsys: pytest.CaptureFixture[str]) -> None:
    assert all(one["ok"] for one in answer(capsys, store, "verify"))
    path = Path(store.url(made[1].id, "a.bin"))
    path.write_bytes(path.read_bytes()[::-1])
    assert call("verify", "--sizes-only", "--root", store.root) == 0
    capsys.readouterr()
    faults = {one["id"]: one["error"] for one in answer(capsys, store, "verify", code=1)}
    assert [one for one, error in faults.items() if error] == ["tokens/tiny@v1"]
    assert "a.bin is damaged" in faults["tokens/tiny@v1"]
    assert answer(capsys, store, "verify", "corpus/tiny")[0]["ok"]
    assert not answer(capsys, store, "verify", "corpus/nope", code=1)[0]["ok"]
    storage.remove_tree(store.url(made[0].id, "artifact.json"))
    faults = {one["id"]: one["error"] for one in answer(capsys, store, "verify", code=1)}
    assert "incomplete" in faults["corpus/tiny@v1"]


@pytest.mark.parametrize("words", [("list",), ("show", "corpus/tiny"), ("lineage", "tokens/tiny"), ("verify",)])
def test_for_people(
    store: Store, made: list[Record], capsys: pytest.CaptureFixture[str], words: tuple[str, ...]
) -> None:
    assert call(*words, "--root", store.root) == 0
    assert "corpus/tiny@v1" in capsys.readouterr().out


@pytest.mark.parametrize("columns", [80, 120])
def test_the_list_breaks_no_word(
    store: Store, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, columns: int
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    metrics = {"documents": 1_234_567, "mean_head_calls": 90.25, "validation_nats_per_token": 4.8125}
    record = make(store, draft("evaluate", "tiny-diffusion-pretrained", metrics=metrics))
    assert call("list", "--root", store.root) == 0
    shown = capsys.readouterr().out
    assert shown.splitlines()[-1] == f"artifacts in {store.root}"
    assert max(map(len, shown.splitlines()[:-1])) <= columns
    words = [record.id, f"{record.finished.astimezone():%Y-%m-%d %H:%M}", "1,234,567,", "mean_head_calls"]
    assert all(word in shown for word in [*words, "validation_nats_per_token", "4.812"])


def test_diff_for_people(store: Store, made: list[Record], capsys: pytest.CaptureFixture[str]) -> None:
    assert call("diff", "tokens/tiny@v1", "tokens/tiny@v2", "--root", store.root) == 0
    assert "tokens.size" in capsys.readouterr().out
    assert call("diff", "tokens/tiny", "tokens/tiny", "--root", store.root) == 0
    assert "were made from the same" in capsys.readouterr().out


@pytest.mark.parametrize("words", [("list",), ("verify",)])
def test_a_mistyped_root_is_no_success(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: tuple[str, ...]
) -> None:
    assert call(*words, "--root", str(tmp_path / "typo")) == 1
    assert "there is no artifact in" in capsys.readouterr().err
