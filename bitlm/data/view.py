"""Artifacts as a ``datasets.Dataset``, to look at them, filter them or feed them to another library."""

import io
import json
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from bitlm.artifacts.record import Record
from bitlm.artifacts.store import Store
from bitlm.data.shards.format import Shard
from bitlm.data.shards.units import TOKENS_FILE
from bitlm.errors import ArtifactError, ConfigError

if TYPE_CHECKING:
    from datasets import Dataset

PREDICTIONS_FILE = "predictions.parquet"


def as_dataset(artifact_id: str, root: str, split: str | None = None) -> "Dataset":
    """An artifact below ``root`` as a dataset; every file is verified before it is read.

    A tokens artifact, of which ``split`` chooses ``train`` (default) or ``validation``, has a row for each document:
    ``id``, ``file`` and ``row`` of the source that it came from, ``shard`` and ``first_token`` where it lies, its
    ``length`` in tokens without the end token, and ``ids``, uint32 [length]. Only the places of the ids are in memory
    (about 150 bytes for each document); the ids are unpacked from a memory-mapped shard when a row is read.

    An evaluate artifact has a row for each prediction, with the columns of its ``predictions.parquet``.

    Raises ArtifactError for an artifact of another stage, and if a file is damaged; ConfigError for an unknown split.
    """
    store = Store(root)
    record = store.load(artifact_id)
    if record.stage == "tokens":
        return _documents(store, record, split or "train")
    if record.stage == "evaluate":
        if split is not None:
            raise ConfigError(f"split = {split!r}: {record.id} holds the predictions for one split only; leave it out")
        return _dataset(pq.read_table(io.BytesIO(store.read_bytes(record, PREDICTIONS_FILE))))
    raise ArtifactError(
        f"{record.id} cannot be read as a dataset: expected an artifact of the stage tokens or evaluate"
    )


def _documents(store: Store, record: Record, split: str) -> "Dataset":
    splits = json.loads(store.read_bytes(record, TOKENS_FILE))["splits"]
    if split not in splits:
        raise ConfigError(f"split = {split!r}: {record.id} has the splits {', '.join(splits)}")
    tables = [_side_table(store, record, shard) for shard in splits[split]["shards"]]
    if not tables:
        raise ArtifactError(f"{record.id}: its split {split} holds no document")
    return _dataset(pa.concat_tables(tables)).with_transform(partial(_with_ids, root=store.root, artifact_id=record.id))


def _side_table(store: Store, record: Record, shard: dict[str, Any]) -> pa.Table:
    table = pq.read_table(io.BytesIO(store.read_bytes(record, shard["docs"])))
    return table.append_column("shard", pa.repeat(shard["path"], len(table)))


def _with_ids(batch: dict[str, list[Any]], root: str, artifact_id: str) -> dict[str, list[Any]]:
    """Rows of a tokens dataset with their ids; unchanged where their place is not among the columns."""
    if not {"shard", "first_token", "length"} <= batch.keys():
        return batch
    places = zip(batch["shard"], batch["first_token"], batch["length"], strict=True)
    ids = [_open_shard(root, artifact_id, path).ids(first, length) for path, first, length in places]
    return {**batch, "ids": ids}


@lru_cache(maxsize=1024)
def _open_shard(root: str, artifact_id: str, path: str) -> Shard:
    """Verified before its first use in this process; it stays mapped."""
    store = Store(root)
    with store.local_file(store.load(artifact_id), path) as local:
        return Shard(local)


def _dataset(table: pa.Table) -> "Dataset":
    from datasets import Dataset  # slow to import

    return Dataset(table)
