"""Files of text that lie outside: a path, pattern or URL, resolved to files with their sizes and tags."""

from collections import Counter
from collections.abc import Iterable
from typing import Literal, NamedTuple

from bitlm import storage
from bitlm.config.stages import Frozen
from bitlm.errors import SourceError

Format = Literal["parquet", "jsonl"]
Compression = Literal["gzip", "zstd"]
COMPRESSIONS: dict[str, Compression] = {".gz": "gzip", ".zst": "zstd"}
SUFFIXES: dict[str, Format] = {
    ".parquet": "parquet",
    **{f"{json}{packed}": "jsonl" for json in (".jsonl", ".json") for packed in ("", *COMPRESSIONS)},
}
"""In lower case; a name may end in them in any case."""
EXPECTED = "expected files that end in .parquet, .jsonl or .json, the last two also with .gz or .zst"
# Files that describe a dataset, as the library `datasets` knows them.
METADATA = ("config.json", "dataset_dict.json", "dataset_info.json", "dataset_infos.json")
OWNED = "sha256-"  # begins the tag of a file that lies in the corpus artifact itself


class SourceFile(Frozen):
    """One file of a source. ``path`` is relative to the source's base; ``etag`` changes when the content does.
    ``split``: the split that the source itself puts the file into, if it says so."""

    url: str
    path: str
    format: Format
    bytes: int
    etag: str
    split: str | None = None

    @property
    def owned(self) -> bool:
        """Whether the file lies in the corpus artifact; ``url`` is then relative to it."""
        return self.etag.startswith(OWNED)


class Found(NamedTuple):
    """The files of a source, sorted by path. ``left_out``: what is not read, counted by ending or by reason."""

    files: list[SourceFile]
    left_out: dict[str, int]


def format_of(path: str) -> Format | None:
    return next((kind for suffix, kind in SUFFIXES.items() if path.lower().endswith(suffix)), None)


def compression_of(url: str) -> Compression | None:
    name = storage.file_name(url).lower()
    return next((kind for suffix, kind in COMPRESSIONS.items() if name.endswith(suffix)), None)


def usable_files(paths: Iterable[str]) -> set[str]:
    """Those that can be read, but none that describes the others."""
    return {path for path in paths if format_of(path) and storage.file_name(path) not in METADATA}


def find_files(source: str) -> Found:
    """The files of a path, pattern or URL; a folder means all its parquet and jsonl files. A file of ``METADATA`` is
    taken only by its own name.

    Raises SourceError if there is none.
    """
    tagged, left_out = storage.find_tagged(source, tuple(SUFFIXES))
    kept = {file.path for file in tagged}
    if storage.file_name(source) not in METADATA:
        kept = usable_files(kept)
        left_out += Counter({"files of metadata": len(tagged) - len(kept)})
    if not kept:
        raise SourceError(f"{storage.redact(source)}: {_nothing(source, left_out)}")
    files = [
        SourceFile(url=url, path=path, format=format_of(path), bytes=tag.bytes, etag=tag.etag)
        for path, url, tag in tagged
        if path in kept
    ]
    return Found(files, dict(sorted(left_out.items())))


def describe_left_out(left_out: dict[str, int]) -> str:
    return ", ".join(f"{count:,} {what}" for what, count in left_out.items())


def check_unchanged(file: SourceFile) -> None:
    """Raises SourceError if a file from outside is no longer the one that was listed. Reads at most a small part of a
    local file; a commit on the Hub cannot change."""
    if file.url.startswith("hf://"):
        return
    now = storage.stat_tag(file.url)
    if now != (file.bytes, file.etag):
        raise SourceError(
            f"{storage.redact(file.url)} changed since the corpus was made ({file.bytes:,} bytes then, "
            f"{now.bytes:,} now; tag {file.etag[:20]} then, {now.etag[:20]} now): run the corpus stage again"
        )


def _nothing(source: str, left_out: Counter[str]) -> str:
    if left_out:
        there = describe_left_out(dict(sorted(left_out.items())))
        return f"none of the {left_out.total()} files there is usable ({there}); {EXPECTED}"
    if storage.is_local(source) and storage.exists(source):
        return f"the folder has no files; {EXPECTED}"
    return f"there is no such file or folder; {EXPECTED}"
