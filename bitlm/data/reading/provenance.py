"""Provenance of any token of a tokens artifact: the text around it, its document, and the row that this came from."""

import json
from dataclasses import dataclass

import numpy as np
import pyarrow.parquet as pq

from bitlm.artifacts.record import Record
from bitlm.artifacts.store import Store
from bitlm.data.shards.format import Shard
from bitlm.data.shards.tokenizer import TextTokenizer, load_tokenizer
from bitlm.data.shards.units import TOKENS_FILE, ShardEntry, Unit, UnitRecord, record_path
from bitlm.errors import ArtifactError, ConfigError
from bitlm.storage.requests import redact

AROUND = 32  # tokens shown on each side


@dataclass(frozen=True)
class Document:
    """``token`` is the place of the token in the document of ``length`` tokens; that of its end token is ``length``.
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


def trace_token(store: Store, record: Record, split: str, at: int, around: int = AROUND) -> TokenProvenance:
    """What stands at a place of a split, its shards one after the other; every file that is read is verified.

    Raises ConfigError where there is no such place, ArtifactError for an artifact that is damaged or holds no tokens.
    """
    if record.stage != "tokens":
        raise ConfigError(f"{record.id} holds no tokens; name an artifact tokens/NAME[@vN]")
    with open(store.checked(record, TOKENS_FILE), "rb") as file:
        splits = json.load(file)["splits"]
    if split not in splits:
        raise ConfigError(f"--split {split}: {record.id} has {' and '.join(splits)}")
    entry, place = _shard(record, split, [ShardEntry.model_validate(shard) for shard in splits[split]["shards"]], at)
    shard = Shard(store.checked(record, entry.path))
    docs = pq.read_table(store.checked(record, entry.docs))
    number = int(np.searchsorted(docs["first_token"].to_numpy(), place, side="right")) - 1
    row = docs.slice(number, 1).to_pylist()[0]
    inside = place - row["first_token"]
    tokenizer = _tokenizer(store, record)
    token_id = int(shard.ids(place, 1)[0])
    shown = {"artifact": record.id, "split": split, "at": at, "token_id": token_id, "shard": entry.path}
    if inside > row["length"]:
        return TokenProvenance(
            **shown, shard_token=place, before="", token=tokenizer.info.end_token, after="", document=None
        )
    first, last = max(inside - around, 0), min(inside + 1 + around, row["length"])
    before = shard.ids(row["first_token"] + first, inside - first)
    after = shard.ids(place + 1, max(last - inside - 1, 0))
    token = tokenizer.info.end_token if inside == row["length"] else tokenizer.decode([token_id])
    url, etag = _source(store, record, entry, row["file"], row["row"])
    document = Document(row["id"], row["row"], row["file"], url, etag, row["length"], inside)
    return TokenProvenance(
        **shown, shard_token=place, before=tokenizer.decode(before), token=token, after=tokenizer.decode(after),
        document=document,
    )  # fmt: skip


def _shard(record: Record, split: str, shards: list[ShardEntry], at: int) -> tuple[ShardEntry, int]:
    """The shard that holds a token, and the token's place in it."""
    ends = np.cumsum([shard.tokens for shard in shards])
    total = int(ends[-1]) if shards else 0
    if not 0 <= at < total:
        raise ConfigError(f"--at {at}: the {split} split of {record.id} holds {total:,} tokens, numbered from 0")
    number = int(np.searchsorted(ends, at, side="right"))
    return shards[number], at - int(ends[number] - shards[number].tokens)


def _tokenizer(store: Store, record: Record) -> TextTokenizer:
    entry = record.inputs["tokenizer"]
    made = store.load(entry.id)
    if made.fingerprint != entry.fingerprint:
        raise ArtifactError(f"{record.id} was made with another {entry.id} than the one in {redact(store.root)}")
    return load_tokenizer(store, made)


def _source(store: Store, record: Record, entry: ShardEntry, file: str, row: int) -> tuple[str, str]:
    """(URL, ETag) of a source file when the unit that holds a row of it was made."""
    with open(store.checked(record, record_path(Unit(index=entry.unit, parts=()))), "rb") as data:
        unit = UnitRecord.model_validate_json(data.read()).unit
    for part in unit.parts:
        if part.path == file and (part.first_row is None or 0 <= row - part.first_row < part.rows):
            return part.url, part.etag
    raise ArtifactError(f"{record.id}: unit {unit.index} has no row {row} of {file}, though {entry.docs} says so")
