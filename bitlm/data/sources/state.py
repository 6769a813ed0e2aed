"""What a configured source holds, as a fingerprint sees it: the content of its files, not their place or age.

A source is ``docstrings``, a path, pattern or URL (a folder means all its parquet and jsonl files), or
``hub:OWNER/NAME``.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bitlm import storage
from bitlm.artifacts.record import refuse_secrets
from bitlm.config import CorpusConfig, TokenizerConfig
from bitlm.config.stages import HUB
from bitlm.data.sources import docstrings
from bitlm.data.sources.files import Found, SourceFile, find_files
from bitlm.data.sources.hub import dataset_files
from bitlm.errors import SourceError
from bitlm.storage import hub
from bitlm.storage.hub import HubRepo

DOCSTRINGS = "docstrings"
TOKENIZER_FILE = "tokenizer.json"
TRAIN = "train"  # the split of a dataset that is text to pretrain on


@dataclass(frozen=True)
class Source:
    """A configured source of text or summaries; ``setting`` is the configuration's key of it."""

    setting: str
    location: str
    subset: str | None = None
    revision: str | None = None

    @property
    def revision_setting(self) -> str:
        return "corpus.revision" if self.setting == "corpus.source" else f"{self.setting}_revision"


def text_source(config: CorpusConfig) -> Source:
    return Source("corpus.source", config.source, config.subset, config.revision)


def summaries_source(config: CorpusConfig) -> Source:
    return Source("corpus.summaries", config.summaries, None, config.summaries_revision)


def corpus_identity(config: CorpusConfig) -> dict[str, Any]:
    """What the corpus is computed from. Files are identified by their content, so where they lie is left out.

    Raises SourceError where a source is missing.
    """
    identity = config.identity()
    if config.source != DOCSTRINGS:
        for key in ("source", "subset", "revision"):
            del identity[key]
    if config.summaries != DOCSTRINGS:
        for key in ("summaries", "summaries_revision"):
            del identity[key]
    return {
        **identity,
        "source_state": _state(text_source(config)),
        "summaries_state": _state(summaries_source(config)),
    }


def corpus_location(config: CorpusConfig) -> dict[str, Any]:
    """Where the files of the corpus lie, which is no part of its identity: a corpus refers to files without copying
    them, so one that was made at another place cannot be read here. Raises ConfigError for a URL with a credential."""
    places = {"source": config.source, "summaries": config.summaries}
    refuse_secrets(places, "corpus")
    return {
        key: storage.local_path(place) if storage.is_local(place) else _without_query(place)
        for key, place in places.items()
        if place != DOCSTRINGS and not place.startswith(HUB)
    }


def _without_query(url: str) -> str:
    """A record shows no queries, so one is told from another by its digest."""
    shown = storage.redact(url)
    return url if shown == url else f"{shown} sha256:{hashlib.sha256(url.encode()).hexdigest()[:16]}"


def tokenizer_identity(config: TokenizerConfig) -> dict[str, Any]:
    """What a ready tokenizer is: its content and the settings that are read beside it. Raises SourceError."""
    refuse_secrets(config.source, "tokenizer.source")
    identity = config.identity()
    for key in ("source", "revision", "vocab_size"):
        del identity[key]
    return {**identity, "source_state": _tokenizer_state(config)}


def read_tokenizer(config: TokenizerConfig) -> bytes:
    """The ``tokenizer.json`` of a ready tokenizer. Raises SourceError."""
    if not config.source.startswith(HUB):
        return storage.read_bytes(_tokenizer_url(config.source))
    repo = _tokenizer_repo(config)
    return hub.download_file(repo, hub.resolve_commit(repo, config.revision), TOKENIZER_FILE).read_bytes()


def resolve(source: Source, state: dict[str, Any]) -> Found:
    """The files of a source; never none. Raises SourceError if they are not those of its state."""
    found = _find(source)
    if files_state(found.files) != state:
        raise SourceError(f"{storage.redact(source.location)} has changed since this run began: run again")
    return found


def files_state(files: Sequence[SourceFile]) -> dict[str, Any]:
    """Number, size and one digest of all files by path, split, size and tag: small also for thousands of files."""
    listed = [[file.path, file.split, file.bytes, file.etag] for file in files]
    digest = hashlib.sha256(json.dumps(listed).encode()).hexdigest()
    return {"kind": "files", "count": len(files), "bytes": sum(file.bytes for file in files), "sha256": digest}


def _state(source: Source) -> dict[str, Any]:
    return docstrings.state() if source.location == DOCSTRINGS else files_state(_find(source).files)


def _find(source: Source) -> Found:
    if not source.location.startswith(HUB):
        return find_files(source.location)
    repo = HubRepo(source.location.removeprefix(HUB), "dataset", source.setting, source.revision_setting)
    files = dataset_files(repo, source.revision, source.subset)
    if source.setting == "corpus.summaries":
        return Found(files, {})
    text = [file for file in files if file.split == TRAIN]
    if not text:
        splits = ", ".join(sorted({str(file.split) for file in files}))
        raise SourceError(f"{source.location} has no split {TRAIN!r} (there are: {splits}); pretraining reads that one")
    return Found(text, {})


def _tokenizer_url(source: str) -> str:
    """Of the file; another name than that of a JSON file is the folder that holds it."""
    if source.endswith(".json") or (storage.is_local(source) and Path(storage.local_path(source)).is_file()):
        return source
    return storage.join(source, TOKENIZER_FILE)


def _tokenizer_repo(config: TokenizerConfig) -> HubRepo:
    return HubRepo(config.source.removeprefix(HUB), "model", "tokenizer.source", "tokenizer.revision")


def _tokenizer_state(config: TokenizerConfig) -> dict[str, Any]:
    if not config.source.startswith(HUB):
        digest = hashlib.sha256(storage.read_bytes(_tokenizer_url(config.source))).hexdigest()
        return {"kind": "file", "digest": f"sha256:{digest}"}
    repo = _tokenizer_repo(config)
    file = hub.stat_file(repo, hub.resolve_commit(repo, config.revision), TOKENIZER_FILE)
    return {"kind": "file", "digest": file.digest}
