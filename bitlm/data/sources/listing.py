"""Text that lives outside: which files a configured source means, and the state of theirs that a fingerprint holds.

A source is ``docstrings``, a path, glob or URL (a folder means all its parquet and jsonl files), or ``hub:OWNER/NAME``.
"""

import hashlib
import re
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal

import httpx
from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError

from bitlm import storage
from bitlm.config import CorpusConfig, TokenizerConfig
from bitlm.config.stages import Frozen
from bitlm.data.sources import docstrings
from bitlm.errors import SourceError

DOCSTRINGS = "docstrings"
HUB = "hub:"
CONVERTED = "refs/convert/parquet"  # where the Hub keeps the parquet form of a dataset that comes in another form
HUB_SECONDS = 20
COMMIT = re.compile(r"[0-9a-f]{40}")
Format = Literal["parquet", "jsonl"]
SUFFIXES: dict[str, Format] = {".parquet": "parquet", ".jsonl": "jsonl", ".jsonl.gz": "jsonl"}


class SourceFile(Frozen):
    """One file of a source. ``path`` is relative to the source's base; ``etag`` changes when the file does."""

    url: str
    path: str
    format: Format
    bytes: int
    etag: str


def corpus_state(config: CorpusConfig) -> dict[str, Any]:
    """What the corpus depends on outside of its configuration. Raises SourceError where a source is missing."""
    return {
        "source_state": _state(config.source, config.subset, config.revision, "corpus.revision"),
        "summaries_state": _state(config.summaries, None, config.summaries_revision, "corpus.summaries_revision"),
    }


def tokenizer_state(config: TokenizerConfig) -> dict[str, Any]:
    """The same for a ready tokenizer: the sha256 of its file, or its commit on the Hub."""
    if config.source == "train":
        return {}
    if config.source.startswith(HUB):
        return {"source_state": _hub_state(config.source, config.revision, "tokenizer.revision", "model")}
    return {"source_state": {"kind": "file", "sha256": hashlib.sha256(storage.read_bytes(config.source)).hexdigest()}}


def _state(source: str, subset: str | None, revision: str | None, key: str) -> dict[str, Any]:
    if source == DOCSTRINGS:
        return docstrings.state()
    if source.startswith(HUB):
        return {**_hub_state(source, revision, key, "dataset"), "subset": subset}
    return {"kind": "files", "files": _files_state(_files(source))}


def _files_state(files: list[SourceFile]) -> list[list[Any]]:
    return [[file.path, file.bytes, file.etag] for file in files]


def resolve(source: str, subset: str | None, state: dict[str, Any]) -> list[SourceFile]:
    """The files of a source, sorted by path; never empty. Raises SourceError where they are not those of its state."""
    if source.startswith(HUB):
        return _hub_files(source, subset, state["revision"])
    files = _files(source)
    if _files_state(files) != state["files"]:
        raise SourceError(f"{storage.redact(source)} has changed since this run began: run again")
    return files


def check_unchanged(file: SourceFile) -> None:
    """Raises SourceError where a file is no longer the one that was listed. A commit on the Hub cannot change."""
    if file.url.startswith("hf://"):
        return
    found = storage.stat_tag(file.url)
    if (found["bytes"], found["etag"]) != (file.bytes, file.etag):
        raise SourceError(
            f"{file.url} changed since the corpus was made ({file.bytes:,} bytes, {file.etag}; now {found['bytes']:,} "
            f"bytes, {found['etag']}): run the corpus stage again"
        )


def format_of(path: str) -> Format | None:
    return next((kind for suffix, kind in SUFFIXES.items() if path.endswith(suffix)), None)


def _files(source: str) -> list[SourceFile]:
    base, urls = _listing(source)
    known = [url for url in urls if format_of(url)]
    if not known:
        found = f"none of the {len(urls)} files there is usable" if urls else "there is no such file or folder"
        raise SourceError(f"{storage.redact(source)}: {found}; expected files that end in {', '.join(SUFFIXES)}")
    with ThreadPoolExecutor(16) as pool:
        tags = list(pool.map(storage.stat_tag, known))
    return [
        SourceFile(url=url, path=_path(url).removeprefix(_path(base)).lstrip("/"), format=format_of(url), **tag)
        for url, tag in zip(known, tags, strict=True)
    ]


def _path(url: str) -> str:
    return storage.filesystem(url)[1]


def _listing(source: str) -> tuple[str, list[str]]:
    """(base, file URLs) of a path or URL: a file, a folder or a glob."""
    if storage.is_local(source):
        source = storage.local_path(source)
    matches = storage.glob(source)
    if matches:
        pattern = re.search(r"[*?\[]", source)
        return source[: pattern.start() if pattern else None].rpartition("/")[0], matches
    return source, [storage.join(source, path) for path in storage.list_files(source)]


def _hub_state(source: str, revision: str | None, key: str, kind: Literal["dataset", "model"]) -> dict[str, Any]:
    return {"kind": "hub", "repo": source.removeprefix(HUB), "revision": hub_commit(source, revision, key, kind)}


def hub_commit(source: str, revision: str | None, key: str, kind: Literal["dataset", "model"]) -> str:
    """The commit that a revision (by default the newest) of a Hub repository stands for."""
    if revision is not None and COMMIT.fullmatch(revision):
        return revision
    repo, api = source.removeprefix(HUB), HfApi()
    try:
        info = api.repo_info(repo, repo_type=kind, revision=revision, timeout=HUB_SECONDS)
        names = [sibling.rfilename for sibling in info.siblings or ()]
        if kind == "dataset" and revision is None and not any(name.endswith(".parquet") for name in names):
            info = api.repo_info(repo, repo_type=kind, revision=CONVERTED, timeout=HUB_SECONDS)
    except (HfHubHTTPError, httpx.HTTPError, OSError) as error:
        raise SourceError(
            f"{source}: the Hub did not say which commit {revision or 'the newest'} is ({_first_line(error)}): "
            f"check the name and the network, set {key} to a commit, or give the path of a local copy"
        ) from error
    assert info.sha is not None
    return info.sha


def _hub_files(source: str, subset: str | None, commit: str) -> list[SourceFile]:
    base = f"hf://datasets/{source.removeprefix(HUB)}@{commit}"
    for folder in _hub_folders(subset):
        url = storage.join(base, folder)
        files = [
            SourceFile(url=storage.join(url, path), path=path, format="parquet", bytes=size, etag=f"revision-{commit}")
            for path, size in storage.list_sizes(url).items()
            if path.endswith(".parquet")
        ]
        if files:
            return files
    raise SourceError(
        f"{source}: no parquet file in {', '.join(folder or '/' for folder in _hub_folders(subset))} at {commit[:12]}; "
        f"corpus.subset names a folder of the dataset (its folders: {', '.join(storage.list_folders(base)) or 'none'})"
    )


def _hub_folders(subset: str | None) -> list[str]:
    """Where the files of a subset may lie: FineWeb's ``sample-10BT`` is in sample/10BT, its ``CC-MAIN-…`` in data/."""
    return ["data", ""] if subset is None else [subset, f"data/{subset}", subset.replace("-", "/", 1)]


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n", 1)[0] or type(error).__name__
