"""Files of text that lie outside: a path, glob or URL, resolved to files with their sizes and tags."""

from typing import Literal

from bitlm import storage
from bitlm.config.stages import Frozen
from bitlm.errors import SourceError

Format = Literal["parquet", "jsonl"]
SUFFIXES: dict[str, Format] = {".parquet": "parquet", ".jsonl": "jsonl", ".jsonl.gz": "jsonl"}
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


def format_of(path: str) -> Format | None:
    return next((kind for suffix, kind in SUFFIXES.items() if path.endswith(suffix)), None)


def find_files(source: str) -> list[SourceFile]:
    """The files of a path, glob or URL, sorted by path; a folder means all its parquet and jsonl files.

    Raises SourceError if there is none.
    """
    base, tags, ignored = storage.find_tagged(source, tuple(SUFFIXES))
    if not tags:
        problem = f"none of the {ignored} files there is usable" if ignored else "there is no such file or folder"
        raise SourceError(f"{storage.redact(source)}: {problem}; expected files that end in {', '.join(SUFFIXES)}")
    prefix = storage.filesystem(base)[1].rstrip("/") + "/"
    files = []
    for url, tag in tags.items():
        path = storage.filesystem(url)[1].removeprefix(prefix)
        files.append(SourceFile(url=url, path=path, format=format_of(path), bytes=tag.bytes, etag=tag.etag))
    return sorted(files, key=lambda file: file.path)


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
