import os
from pathlib import Path
from types import SimpleNamespace

import pytest
from huggingface_hub import HfApi

from bitlm import storage
from bitlm.config import CorpusConfig, TokenizerConfig
from bitlm.data.sources import listing as sources
from bitlm.errors import SourceError

COMMIT = "0123456789" * 4


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("b/two.parquet", "a/one.parquet", "a/notes.txt", "c.jsonl.gz", "d.jsonl"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(name.encode())
    return tmp_path


def found(source: str) -> list[str]:
    state = sources.corpus_state(CorpusConfig(source=source))["source_state"]
    files = sources.resolve(source, None, state)
    assert [file.path for file in files] == [entry[0] for entry in state["files"]]
    assert all(storage.read_bytes(file.url).decode().endswith(os.path.basename(file.path)) for file in files)
    return [file.path for file in files]


def test_a_file_a_folder_a_glob_and_a_url(folder: Path) -> None:
    assert found(str(folder)) == ["a/one.parquet", "b/two.parquet", "c.jsonl.gz", "d.jsonl"]
    assert found(f"{folder}/*/*.parquet") == ["a/one.parquet", "b/two.parquet"]
    assert found(f"{folder}/d.jsonl") == ["d.jsonl"]
    assert found(f"file://{folder}/a") == ["one.parquet"]
    for name in ("x/1.parquet", "x/2.jsonl"):
        storage.write_atomic(f"memory://sources/{name}", f"memory://{name}".encode())
    assert found("memory://sources/x") == ["1.parquet", "2.jsonl"]
    assert found("memory://sources/*/*.parquet") == ["x/1.parquet"]


def test_state_changes_with_a_file_and_not_with_the_place(folder: Path) -> None:
    def state() -> dict:
        return sources.corpus_state(CorpusConfig(source=str(folder)))["source_state"]

    before = state()
    assert str(folder) not in str(before)
    assert state() == before
    listed = sources.resolve(str(folder), None, before)
    sources.check_unchanged(listed[0])
    Path(listed[0].url).write_bytes(b"something else")
    assert state() != before
    with pytest.raises(SourceError, match="changed since the corpus was made"):
        sources.check_unchanged(listed[0])
    with pytest.raises(SourceError, match="has changed since this run began"):
        sources.resolve(str(folder), None, before)


@pytest.mark.parametrize("field", ["source", "summaries"])
def test_a_missing_source_is_an_error_that_names_it(folder: Path, field: str) -> None:
    for source in (f"{folder}/absent.parquet", f"{folder}/*.csv", f"{folder}/absent", "memory://absent/folder"):
        with pytest.raises(SourceError, match="there is no such file or folder"):
            sources.corpus_state(CorpusConfig(**{field: source}))
    with pytest.raises(SourceError, match=r"none of the 1 files there is usable"):
        sources.corpus_state(CorpusConfig(**{field: f"{folder}/a/notes.txt"}))


def test_a_pinned_hub_source_needs_no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(HfApi, "repo_info", lambda *_, **__: pytest.fail("asked the Hub"))
    config = CorpusConfig(source="hub:some/set", subset="sample-10BT", revision=COMMIT)
    assert sources.corpus_state(config)["source_state"] == {
        "kind": "hub",
        "repo": "some/set",
        "revision": COMMIT,
        "subset": "sample-10BT",
    }


def test_an_unreachable_hub_is_an_error_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*_: object, **__: object) -> None:
        raise ConnectionError("no route to host\nand more")

    monkeypatch.setattr(HfApi, "repo_info", unreachable)
    with pytest.raises(SourceError, match=r"hub:some/set.*no route to host\).*set corpus\.revision to a commit"):
        sources.corpus_state(CorpusConfig(source="hub:some/set"))
    with pytest.raises(SourceError, match=r"set tokenizer\.revision to a commit"):
        sources.tokenizer_state(TokenizerConfig(source="hub:some/model"))


def test_a_hub_dataset_without_parquet_is_taken_in_its_converted_form(monkeypatch: pytest.MonkeyPatch) -> None:
    def info(_: HfApi, repo: str, *, repo_type: str, revision: str | None, timeout: float) -> SimpleNamespace:
        names = {None: ["script.py"], sources.CONVERTED: ["default/train/0000.parquet"]}[revision]
        siblings = [SimpleNamespace(rfilename=name) for name in names]
        return SimpleNamespace(sha={None: "a" * 40}.get(revision, "b" * 40), siblings=siblings)

    monkeypatch.setattr(HfApi, "repo_info", info)
    assert sources.hub_commit("hub:some/set", None, "corpus.revision", "dataset") == "b" * 40
    assert sources.hub_commit("hub:some/model", None, "tokenizer.revision", "model") == "a" * 40


@pytest.mark.parametrize(
    ("subset", "folder"),
    [(None, "data"), ("sample-10BT", "sample/10BT"), ("CC-MAIN-2024-10", "data/CC-MAIN-2024-10"), (None, "default")],
)
def test_where_the_files_of_a_hub_subset_lie(subset: str | None, folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    base = f"hf://datasets/some/set@{COMMIT}"

    def list_sizes(url: str) -> dict[str, int]:
        prefix = url.removeprefix(base).strip("/")
        files = {f"{folder}/000.parquet": 5, f"{folder}/readme.md": 1}
        return {path.removeprefix(prefix).strip("/"): size for path, size in files.items() if path.startswith(prefix)}

    monkeypatch.setattr(storage, "list_sizes", list_sizes)
    files = sources.resolve("hub:some/set", subset, {"revision": COMMIT})
    expected = (f"{base}/{folder}/000.parquet", 5, f"revision-{COMMIT}")
    assert [(file.url, file.bytes, file.etag) for file in files] == [expected]


def test_the_state_of_a_ready_tokenizer_is_its_content(tmp_path: Path) -> None:
    for name in ("one", "other"):
        (tmp_path / name).write_bytes(b"{}")
    states = [sources.tokenizer_state(TokenizerConfig(source=str(tmp_path / name))) for name in ("one", "other")]
    assert states[0] == states[1]
    (tmp_path / "one").write_bytes(b"{ }")
    assert sources.tokenizer_state(TokenizerConfig(source=str(tmp_path / "one"))) != states[0]
    with pytest.raises(SourceError, match="absent"):
        sources.tokenizer_state(TokenizerConfig(source=str(tmp_path / "absent")))
