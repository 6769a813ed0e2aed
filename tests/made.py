"""Small artifacts for tests."""

import os
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pyarrow as pa

from bitlm import storage
from bitlm.artifacts import Draft, Record, Store, Work, fingerprint
from bitlm.data.shards.format import ShardWriter

FILES = {"a.bin": os.urandom(5000), "deep/er/b.bin": b"hello", "empty": b""}


def draft(
    stage: str = "corpus",
    name: str = "tiny",
    identity: dict[str, Any] | None = None,
    inputs: Mapping[str, Record] | None = None,
    **given: Any,
) -> Draft:
    identity, inputs = identity or {"size": 1, "rate": 0.5, "names": ["x", "y"]}, dict(inputs or {})
    print_ = fingerprint(stage, 1, identity, {role: record.fingerprint for role, record in inputs.items()})
    usual: dict[str, Any] = {"execution": {"num_workers": 2}, "metrics": {"documents": 3, "loss": 0.25}}
    return Draft(stage, name, print_, 1, identity, inputs=inputs, started=datetime.now(UTC), **(usual | given))


def begin(store: Store, of: Draft, files: Mapping[str, bytes] = FILES) -> Work:
    work = store.begin(of.stage, of.name, of.fingerprint)
    for path, data in files.items():
        storage.write_atomic(storage.join(work.out, path), data)
    storage.write_atomic(storage.join(work.scratch, "notes"), b"private")
    return work


def make(store: Store, of: Draft | None = None, files: Mapping[str, bytes] = FILES) -> Record:
    of = of or draft()
    return store.commit(begin(store, of, files), of)


def add_document(writer: ShardWriter, id: str, row: int, ids: Iterable[int]) -> None:
    tokens = np.array(list(ids), dtype=np.uint32)
    writer.add(tokens, np.array([len(tokens)]), pa.array([id]), np.array([row]), "source.parquet")
