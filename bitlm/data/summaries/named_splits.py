"""Which split of the summarization set a file is of: the Hub dataset tells, or the names of files and folders do."""

import re
from collections.abc import Sequence
from pathlib import PurePosixPath

from bitlm.data.sources.corpus import Summaries, TextFile
from bitlm.data.summaries.examples import SUMMARY_SPLITS
from bitlm.errors import SourceError

# Those of the library `datasets`, and "development".
KEYWORDS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev", "development"),
    "test": ("test", "testing", "eval", "evaluation"),
}
_SPLITS = {word + end: split for split, words in KEYWORDS.items() for word in words for end in ("", "s", "set")}
_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+")  # XSumTrain-00 is three words
_EXPECTED = (
    "expected the splits train, validation and test, as a Hub dataset has them or as words in the names of files or "
    "folders, or files that name no split"
)
MOST_SHOWN = 3  # files that an error lists


def refer(files: Sequence[TextFile], place: str) -> Summaries:
    """Files by split; ``place`` says in errors whose files they are. If all of them are of the split train, or none
    names a split, the hash of each example's document decides.

    Raises SourceError if the name of a file means several splits, if only some files have a split, or if there is none
    for one of the splits.
    """
    by_split: dict[str, list[TextFile]] = {split: [] for split in SUMMARY_SPLITS}
    other: list[TextFile] = []
    for file in files:
        by_split.get(_split(file, place), other).append(file)
    unnamed = [file for file in other if file.split is None]
    named = [file for chosen in by_split.values() for file in chosen]
    if named and unnamed:
        raise SourceError(
            f"{place}: {_paths(unnamed)} is named after no split, but {_paths(named)} is; rename or leave out"
        )
    if unnamed or (by_split["train"] and not by_split["validation"] and not by_split["test"]):
        pooled = tuple(unnamed or by_split["train"])
        return Summaries(train=pooled, validation=pooled, test=pooled, hash_split=True)
    missing = [split for split in SUMMARY_SPLITS if not by_split[split]]
    if missing:
        there = sorted({file.split for file in files if file.split}) or [_paths(named)]
        raise SourceError(f"{place}: no file is of the split {missing[0]} (there is {', '.join(there)}); {_EXPECTED}")
    return Summaries(**{split: tuple(chosen) for split, chosen in by_split.items()}, hash_split=False)


def _split(file: TextFile, place: str) -> str | None:
    """None for a file that names no split. Its own name counts before its folders', a near folder before a far one."""
    if file.split is not None:
        return _SPLITS.get(file.split)
    for part in reversed(PurePosixPath(file.path).parts):
        words = [word.lower() for word in _WORD.findall(part)]
        splits = {_SPLITS[word] for word in words if word in _SPLITS}
        if len(splits) > 1:
            raise SourceError(f"{place}: {file.path} names several splits ({', '.join(sorted(splits))}); {_EXPECTED}")
        if splits:
            return splits.pop()
    return None


def _paths(files: Sequence[TextFile]) -> str:
    return ", ".join(file.path for file in files[:MOST_SHOWN]) + (", …" if len(files) > MOST_SHOWN else "")
