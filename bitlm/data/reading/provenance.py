"""Provenance of any token of a tokens artifact: the text around it, its document, and the row that this came from."""

import json
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pyarrow.parquet as pq

from bitlm.artifacts.record import Record
from bitlm.artifacts.store import Store
from bitlm.data.shards.format import Shard
from bitlm.data.shards.tokenizer import TextTokenizer, load_tokenizer
from bitlm.data.shards.units import TOKENS_FILE, ShardEntry, Unit, UnitRecord, record_path
from bitlm.errors import ArtifactError, ConfigError
from bitlm.storage.requests import redact

CONTEXT = 32  # tokens shown on each side


@dataclass(frozen=True)
class Document:
    """``token`` is the position of the token in the document of ``length`` tokens; its end token has ``length``.
    ``file`` is the source file as the corpus names it, ``url`` and ``etag`` what it was when it was read."""

    id: str
    row: int
    file: str
    url: str
    etag: str
    length: int
    token: int


@dataclass(frozen=True)
class TokenProvenance:
    """Token ``at`` of a split. ``before`` and ``after`` are text of the same document; ``document`` is None for the end
    tokens that fill up the last group of a shard."""

    artifact: str
    split: str
    at: int
    token_id: int
    shard: str
    shard_token: int
    before: str
    token: str
    after: str
    document: Document | None


class _Passage(NamedTuple):
    """A row of a shard's side file, and the ids of the token and its neighbours in the same document. ``offset`` is the
    position of the token in the document; it exceeds the document's length where the token is filling."""

    row: dict
    offset: int
    before: np.ndarray
    token: int
    after: np.ndarray


def trace_token(store: Store, record: Record, split: str, at: int, context: int = CONTEXT) -> TokenProvenance:
    """Where token ``at`` of a split, counted through its shards, comes from; every file that is read is verified.

    Raises ConfigError if there is no such token, ArtifactError for an artifact that is damaged or holds no tokens.
    """
    if record.stage != "tokens":
        raise ConfigError(f"{record.id} holds no tokens; name an artifact tokens/NAME[@vN]")
    splits = json.loads(store.read_bytes(record, TOKENS_FILE))["splits"]
    if split not in splits:
        raise ConfigError(f"--split {split}: {record.id} has {' and '.join(splits)}")
    shards = [ShardEntry.model_validate(shard) for shard in splits[split]["shards"]]
    entry, place = _locate(record, split, shards, at)
    passage = _read_passage(store, record, entry, place, context)
    tokenizer = _tokenizer(store, record)
    row, end_token = passage.row, tokenizer.info.end_token
    document = None
    if passage.offset <= row["length"]:
        url, etag = _source(store, record, entry, row["file"], row["row"])
        document = Document(row["id"], row["row"], row["file"], url, etag, row["length"], passage.offset)
    return TokenProvenance(
        artifact=record.id,
        split=split,
        at=at,
        token_id=passage.token,
        shard=entry.path,
        shard_token=place,
        before=tokenizer.decode(passage.before),
        token=tokenizer.decode([passage.token]) if passage.offset < row["length"] else end_token,
        after=tokenizer.decode(passage.after),
        document=document,
    )


def _locate(record: Record, split: str, shards: list[ShardEntry], at: int) -> tuple[ShardEntry, int]:
    """The shard that holds a token, and the token's position in it."""
    ends = np.cumsum([shard.tokens for shard in shards])
    total = int(ends[-1]) if shards else 0
    if not 0 <= at < total:
        raise ConfigError(f"--at {at}: the {split} split of {record.id} holds {total:,} tokens, numbered from 0")
    number = int(np.searchsorted(ends, at, side="right"))
    return shards[number], at - int(ends[number] - shards[number].tokens)


def _read_passage(store: Store, record: Record, entry: ShardEntry, place: int, context: int) -> _Passage:
    with store.local_file(record, entry.docs) as path:
        docs = pq.read_table(path)
    number = int(np.searchsorted(docs["first_token"].to_numpy(), place, side="right")) - 1
    row = docs.slice(number, 1).to_pylist()[0]
    offset = place - row["first_token"]
    filling = offset > row["length"]
    first = offset if filling else max(offset - context, 0)
    last = offset if filling else min(offset + 1 + context, row["length"])
    with store.local_file(record, entry.path) as path:
        shard = Shard(path)
        before = shard.ids(row["first_token"] + first, offset - first)
        after = shard.ids(place + 1, max(last - offset - 1, 0))
        return _Passage(row, offset, before, int(shard.ids(place, 1)[0]), after)


def _tokenizer(store: Store, record: Record) -> TextTokenizer:
    entry = record.inputs["tokenizer"]
    tokenizer = store.load(entry.id)
    if tokenizer.fingerprint != entry.fingerprint:
        raise ArtifactError(f"{record.id} was made with another {entry.id} than the one in {redact(store.root)}")
    return load_tokenizer(store, tokenizer)


def _source(store: Store, record: Record, entry: ShardEntry, file: str, row: int) -> tuple[str, str]:
    """(URL, ETag) of a source file at the time when the unit that holds a row of it was made."""
    data = store.read_bytes(record, record_path(Unit(index=entry.unit, parts=())))
    unit = UnitRecord.model_validate_json(data).unit
    for part in unit.parts:
        if part.path == file and (part.first_row is None or 0 <= row - part.first_row < part.rows):
            return part.url, part.etag
    raise ArtifactError(f"{record.id}: unit {unit.index} has no row {row} of {file}, though {entry.docs} says so")
