import itertools

import pytest

from bitlm.data.sources.corpus import TextFile
from bitlm.data.summaries.examples import SUMMARY_SPLITS
from bitlm.data.summaries.named_splits import refer
from bitlm.errors import SourceError


def file(path: str, split: str | None = None) -> TextFile:
    return TextFile(url=path, path=path, format="parquet", bytes=1, etag="x", columns={}, split=split)


def paths(*names: str) -> dict[str, list[str]]:
    described = refer([file(name) for name in names], "somewhere")
    assert not described.hash_split
    return {split: [f.path for f in getattr(described, split)] for split in SUMMARY_SPLITS}


def test_files_are_told_apart_by_name_or_folder() -> None:
    names = ["train-0.parquet", "x/test/0.parquet", "validation_like.parquet", "train-1.parquet"]
    assert paths(*names) == {
        "train": ["train-0.parquet", "train-1.parquet"],
        "validation": ["validation_like.parquet"],
        "test": ["x/test/0.parquet"],
    }


NAMES = {
    "train": [
        "train.parquet",
        "TRAIN.parquet",
        "training.jsonl.gz",
        "trainset.parquet",
        "train-00000-of-00001.parquet",
        "train0.parquet",
        "xsum_train.parquet",
        "XSumTrain.parquet",
        "data/Train/part-0.parquet",
        "pretrain-test/train/0.parquet",
    ],
    "validation": [
        "validation.parquet",
        "valid.parquet",
        "val.parquet",
        "dev.parquet",
        "DEV.parquet",
        "xsum-dev-2.parquet",
        "devset.jsonl",
        "development.parquet",
        "data/dev/part-0.parquet",
        "train/validation.parquet",
    ],
    "test": [
        "test.parquet",
        "tests/0.parquet",
        "testing.parquet",
        "eval.parquet",
        "XSUM_TEST.parquet",
        "testSet.jsonl",
    ],
}


@pytest.mark.parametrize("named", list(itertools.zip_longest(*NAMES.values())), ids=str)
def test_names_of_splits_are_whole_words_in_any_case(named: tuple[str | None, ...]) -> None:
    chosen = [name or f"{split}.parquet" for name, split in zip(named, SUMMARY_SPLITS, strict=True)]
    assert paths(*chosen) == {split: [name] for split, name in zip(SUMMARY_SPLITS, chosen, strict=True)}


@pytest.mark.parametrize(
    "name", ["testimony.parquet", "pretrain.parquet", "device.parquet", "value.parquet", "all.jsonl"]
)
def test_a_longer_word_names_no_split(name: str) -> None:
    assert refer([file(name), file("b/0.parquet")], "somewhere").hash_split


def test_a_set_that_names_no_split_or_train_alone_is_split_by_document() -> None:
    for names in (["a.parquet", "b.parquet"], ["train.parquet"], ["train/0.parquet", "train/1.jsonl"]):
        described = refer([file(name) for name in names], "somewhere")
        assert described.hash_split
        assert [f.path for f in described.train] == [f.path for f in described.test] == names


@pytest.mark.parametrize(
    ("names", "told"),
    [
        (["train.parquet", "dev.parquet"], r"no file is of the split test \(there is train\.parquet, dev\.parquet\)"),
        (["train.parquet", "test.parquet"], "no file is of the split validation"),
        (["dev.parquet"], "no file is of the split train"),
        (
            ["train.parquet", "test.parquet", "val.parquet", "x/more.parquet"],
            r"x/more\.parquet is named after no split",
        ),
        (["train.parquet", "more.parquet"], r"more\.parquet is named after no split, but train\.parquet is"),
        (["train.parquet", "test_train.parquet"], r"test_train\.parquet names several splits \(test, train\)"),
        (["train-test/0.parquet"], "names several splits"),
        (["DevTest.parquet"], "names several splits"),
    ],
)
def test_a_missing_split_or_an_odd_file_is_an_error(names: list[str], told: str) -> None:
    with pytest.raises(SourceError, match=rf"^somewhere: .*{told}"):
        refer([file(name) for name in names], "somewhere")


def test_the_splits_of_a_hub_dataset_come_before_names() -> None:
    files = [
        file("dev.parquet", "validation"),
        file("eval/train.parquet", "test"),
        file("a.parquet", "train"),
        file("b", "extra"),
        file("c", "validation_matched"),
    ]
    described = refer(files, "somewhere")
    assert not described.hash_split
    chosen = {split: [f.path for f in getattr(described, split)] for split in SUMMARY_SPLITS}
    assert chosen == {"train": ["a.parquet"], "validation": ["dev.parquet"], "test": ["eval/train.parquet"]}
    with pytest.raises(SourceError, match=r"no file is of the split test \(there is train, validation\); expected"):
        refer([files[0], files[2]], "somewhere")
    with pytest.raises(SourceError, match=r"no file is of the split train \(there is extra\)"):
        refer([files[3]], "somewhere")


def test_a_hub_dataset_may_call_its_validation_dev_and_its_extra_splits_are_not_pooled() -> None:
    described = refer([file("a", "train"), file("b", "dev"), file("c", "test")], "somewhere")
    assert [f.path for f in described.validation] == ["b"]
    alone = refer([file("a", "train"), file("b", "unsupervised")], "somewhere")
    assert alone.hash_split
    assert [f.path for f in alone.train] == ["a"]
