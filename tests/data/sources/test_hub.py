"""The real client and the real ``datasets`` against a small Hub on loopback."""

import io
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fake_hub import FakeHub, OnHub

from bitlm import storage
from bitlm.config import CorpusConfig
from bitlm.data.sources.files import find_files
from bitlm.data.sources.hub import dataset_files
from bitlm.data.sources.rows import read_rows
from bitlm.data.sources.state import corpus_identity
from bitlm.errors import SourceError
from bitlm.storage.hub import HubRepo

# The form of FineWeb's README: a default over all crawls, samples and single crawls beside it.
FINEWEB_README = """---
license: odc-by
configs:
- config_name: default
  data_files:
  - split: train
    path: data/*/*
- config_name: sample-10BT
  data_files:
  - split: train
    path: sample/10BT/*
- config_name: CC-MAIN-2024-10
  data_files:
  - split: train
    path: data/CC-MAIN-2024-10/*
---
# FineWeb
"""
FINEWEB = {
    "README.md": FINEWEB_README.encode(),
    "sample/10BT/000_00000.parquet": b"ten",
    "sample/10BT/001_00000.parquet": b"ten more",
    "sample/100BT/000_00000.parquet": b"hundred",
    "data/CC-MAIN-2024-10/000_00000.parquet": b"crawl",
    "data/CC-MAIN-2013-20/000_00000.parquet": b"old crawl",
}


def repo(name: str, setting: str = "corpus.source") -> HubRepo:
    return HubRepo(name, "dataset", setting, f"{setting}.revision")


def places(files: list) -> list[tuple[str | None, str]]:
    return [(file.split, file.path) for file in files]


@pytest.fixture(scope="module")
def fineweb(hub: FakeHub) -> str:
    return hub.commit("dataset", "some/fineweb", FINEWEB)


def test_files_of_a_repository_by_their_urls(fineweb: str, on_hub: OnHub) -> None:
    base = f"hf://datasets/some/fineweb@{fineweb}"
    for source, expected in {
        f"{base}/sample/10BT/*.parquet": ["000_00000.parquet", "001_00000.parquet"],
        f"{base}/sample/{{10BT,100BT}}/000*": ["100BT/000_00000.parquet", "10BT/000_00000.parquet"],
        f"{base}/**/0*.parquet": sorted(path for path in FINEWEB if path.endswith("parquet")),
        f"{base}/sample": ["100BT/000_00000.parquet", "10BT/000_00000.parquet", "10BT/001_00000.parquet"],
        f"{base}/sample/10BT/000_00000.parquet": ["000_00000.parquet"],
    }.items():
        assert [file.path for file in on_hub(find_files, source).files] == expected
    with pytest.raises(SourceError, match="there is no such file or folder"):
        on_hub(find_files, f"{base}/absent/*.parquet")


def test_compressed_json_is_read_and_json_that_describes_is_not(hub: FakeHub, on_hub: OnHub) -> None:
    files = {"train.json.gz": b"text", "data/train-1.jsonl.zst": b"more", "dataset_infos.json": b"{}"}
    hub.commit("dataset", "some/c4", files)
    found = on_hub(dataset_files, repo("some/c4"), None, None)
    assert "dataset_infos.json" not in [file.path for file in found]
    assert {file.format for file in found} == {"jsonl"}


@pytest.mark.parametrize(
    ("subset", "expected"),
    [
        ("sample-10BT", ["sample/10BT/000_00000.parquet", "sample/10BT/001_00000.parquet"]),
        ("CC-MAIN-2024-10", ["data/CC-MAIN-2024-10/000_00000.parquet"]),
        (None, ["data/CC-MAIN-2013-20/000_00000.parquet", "data/CC-MAIN-2024-10/000_00000.parquet"]),
    ],
)
def test_declared_configurations(subset: str | None, expected: list[str], fineweb: str, on_hub: OnHub) -> None:
    files = on_hub(dataset_files, repo("some/fineweb"), None, subset)
    assert places(files) == [("train", path) for path in expected]
    for file in files:
        assert file.url == f"hf://datasets/some/fineweb@{fineweb}/{file.path}"
        assert file.bytes == len(FINEWEB[file.path])
        assert file.etag.startswith("sha256:")


def test_a_configuration_that_is_not_declared(fineweb: str, on_hub: OnHub) -> None:
    with pytest.raises(SourceError, match=r"no configuration 'sample-10B'; the nearest is 'sample-10BT'"):
        on_hub(dataset_files, repo("some/fineweb"), None, "sample-10B")


def test_what_a_commit_holds_is_asked_for_once(hub: FakeHub, on_hub: OnHub) -> None:
    commit = hub.commit("dataset", "some/once", FINEWEB)
    first = on_hub(dataset_files, repo("some/once"), commit, "sample-10BT")
    hub.requests.clear()
    assert on_hub(dataset_files, repo("some/once"), commit, "sample-10BT") == first
    assert hub.requests == []


SHARDED = {
    f"data/{split}-0000{i}-of-00002.parquet": f"{split} {i}".encode()
    for split in ("train", "validation", "test")
    for i in range(2)
}
IN_FOLDERS = {f"default/{split}/0000.parquet": split.encode() for split in ("train", "validation", "test")}
OTHER_NAMES = {"train.parquet": b"a", "dev.parquet": b"b", "eval/1.parquet": b"c", "notes.txt": b"d"}


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        (SHARDED, [(Path(path).name.split("-")[0], path) for path in sorted(SHARDED)]),
        (IN_FOLDERS, [(path.split("/")[1], path) for path in sorted(IN_FOLDERS)]),
        ({"one.parquet": b"1", "two.jsonl": b"2"}, [("train", "one.parquet"), ("train", "two.jsonl")]),
        (
            {"train.parquet": b"1", "dev.parquet": b"2", "eval.parquet": b"3"},
            [("validation", "dev.parquet"), ("test", "eval.parquet"), ("train", "train.parquet")],
        ),
    ],
)
def test_splits_of_a_dataset_without_configurations(
    files: dict[str, bytes], expected: list[tuple[str, str]], hub: FakeHub, on_hub: OnHub
) -> None:
    hub.commit("dataset", "some/xsum", {"README.md": b"---\nlicense: unknown\n---\n# XSum", **files})
    assert places(on_hub(dataset_files, repo("some/xsum"), None, None)) == expected
    assert places(on_hub(dataset_files, repo("some/xsum"), None, "default")) == expected
    with pytest.raises(SourceError, match=r"no configuration 'other' \(there are: default\)"):
        on_hub(dataset_files, repo("some/xsum"), None, "other")


def test_the_hubs_parquet_copy_stands_in_for_a_script(hub: FakeHub, on_hub: OnHub) -> None:
    hub.commit("dataset", "some/script", {"script.py": b"", "README.md": b"# No front matter"})
    with pytest.raises(SourceError, match="refs/convert/parquet does not exist"):
        on_hub(dataset_files, repo("some/script"), None, None)
    copy = {f"{config}/{split}/0000.parquet": b"x" for config in ("3.0.0", "1.0.0") for split in ("train", "test")}
    exported = hub.commit("dataset", "some/script", {".gitattributes": b"", **copy}, branch="refs/convert/parquet")
    expected = [("test", "3.0.0/test/0000.parquet"), ("train", "3.0.0/train/0000.parquet")]
    for revision in (None, exported, "refs/convert/parquet"):
        files = on_hub(dataset_files, repo("some/script"), revision, "3.0.0")
        assert places(files) == expected
        assert all(f"@{exported}/" in file.url for file in files)
    with pytest.raises(SourceError, match=r"several configurations and no default \(there are: 1\.0\.0, 3\.0\.0\)"):
        on_hub(dataset_files, repo("some/script"), None, None)
    with pytest.raises(SourceError, match=r"set corpus\.summaries to the files of one of them, hf://"):
        on_hub(dataset_files, repo("some/script", "corpus.summaries"), None, None)
    with pytest.raises(SourceError, match=r"no file of it at commit .* set corpus\.source\.revision to refs/conv"):
        on_hub(dataset_files, repo("some/script"), "main", None)


def test_a_copy_that_is_only_a_part_is_refused(hub: FakeHub, on_hub: OnHub) -> None:
    hub.commit("dataset", "some/large", {"default/partial-train/0000.parquet": b"x"})
    with pytest.raises(SourceError, match=r"holds only a part of it \(partial-train\)"):
        on_hub(dataset_files, repo("some/large"), None, None)


@pytest.mark.parametrize("front", ["configs: [", "configs: 5", "configs:\n- data_files: x", "- a"])
def test_a_readme_that_is_not_usable(front: str, hub: FakeHub, on_hub: OnHub) -> None:
    hub.commit("dataset", "some/broken", {"README.md": f"---\n{front}\n---\n".encode(), "a.parquet": b"x"})
    with pytest.raises(
        SourceError, match=r"hub:some/broken: its README or the names of its files at commit \w+ are not"
    ):
        on_hub(dataset_files, repo("some/broken"), None, None)


def test_a_split_whose_name_is_not_usable(hub: FakeHub, on_hub: OnHub) -> None:
    hub.commit("dataset", "some/odd", {"data/a b-00000-of-00001.parquet": b"x"})
    with pytest.raises(SourceError, match=r"hub:some/odd: its README or the names .* \(Split name should match"):
        on_hub(dataset_files, repo("some/odd"), None, None)


def test_the_identity_follows_the_files_used(hub: FakeHub, on_hub: OnHub) -> None:
    def identity(**settings: str) -> dict:
        return on_hub(corpus_identity, CorpusConfig(source="hub:some/text", **settings))

    first = hub.commit("dataset", "some/text", FINEWEB)
    before = identity(subset="sample-10BT")
    assert before["source_state"]["count"] == 2
    assert before["source_state"]["bytes"] == 11
    second = hub.commit("dataset", "some/text", FINEWEB | {"README.md": FINEWEB_README.encode() + b"A word more."})
    assert first != second
    assert identity(subset="sample-10BT") == before == identity(subset="sample-10BT", revision=first)
    hub.commit("dataset", "some/text", FINEWEB | {"sample/100BT/000_00000.parquet": b"more"})
    assert identity(subset="sample-10BT") == before
    hub.commit("dataset", "some/text", FINEWEB | {"sample/10BT/000_00000.parquet": b"new"})
    assert identity(subset="sample-10BT") != before
    assert identity(subset="sample-10BT", revision=second) == before


def test_text_is_the_train_split(hub: FakeHub, on_hub: OnHub) -> None:
    hub.commit("dataset", "some/wiki", SHARDED)
    assert on_hub(corpus_identity, CorpusConfig(source="hub:some/wiki"))["source_state"]["count"] == 2
    assert on_hub(corpus_identity, CorpusConfig(summaries="hub:some/wiki"))["summaries_state"]["count"] == 6
    hub.commit("dataset", "some/wiki", {path: data for path, data in SHARDED.items() if "train" not in path})
    with pytest.raises(SourceError, match=r"hub:some/wiki has no split 'train' \(there are: test, validation\)"):
        on_hub(corpus_identity, CorpusConfig(source="hub:some/wiki"))


def _rows(url: str) -> list[str | None]:
    return [row.text for rows in read_rows(url, "parquet", "text", None) for row in rows]


def test_a_file_of_the_hub_is_read(hub: FakeHub, on_hub: OnHub) -> None:
    table = io.BytesIO()
    pq.write_table(pa.table({"text": ["one", "two", "three"]}), table)
    hub.commit("dataset", "some/rows", {"train.parquet": table.getvalue()})
    file = on_hub(dataset_files, repo("some/rows"), None, None)[0]
    assert on_hub(_rows, file.url) == ["one", "two", "three"]
    with pytest.raises(SourceError, match="there is no such file"):
        on_hub(storage.read_bytes, file.url.replace("train", "absent"))
