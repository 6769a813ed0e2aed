"""A tokens artifact made of given ids."""

import io
import json
from collections.abc import Sequence

from made import add_document, draft

from bitlm import storage
from bitlm.artifacts import Record, Store
from bitlm.data.shards.format import ShardWriter

END = 1
Documents = Sequence[Sequence[int]]  # the ids of each


def make_tokens(
    store: Store,
    train: Sequence[Documents],
    validation: Sequence[Documents] = (),
    num_bits: int = 12,
    name: str = "tiny",
    inputs: dict[str, Record] | None = None,
) -> Record:
    """One shard for each list of documents; document i of a shard has the id "SPLIT-SHARD-i" and is row i."""
    of = draft("tokens", name, identity={"documents": [train, validation]}, inputs=inputs)
    work = store.begin(of.stage, of.name, of.fingerprint)
    splits = {}
    for split, shards in (("train", train), ("validation", validation)):
        made = []
        for number, documents in enumerate(shards):
            writer = ShardWriter(num_bits, END)
            for row, ids in enumerate(documents):
                add_document(writer, f"{split}-{number}-{row}", row, ids)
            files = {".arrow": io.BytesIO(), ".docs.parquet": io.BytesIO()}
            counts = writer.write(*files.values())
            base = f"shards/{split}/{number:05d}"
            for suffix, file in files.items():
                storage.write_atomic(storage.join(work.out, base + suffix), file.getvalue())
            made.append({"path": base + ".arrow", "docs": base + ".docs.parquet", "tokens": counts.tokens})
        tokens = sum(shard["tokens"] for shard in made)
        splits[split] = {"shards": made, "tokens": tokens, "filling": 0, "text_bytes": 4 * tokens}
    summary = {"num_bits": num_bits, "end_id": END, "splits": splits}
    storage.write_atomic(storage.join(work.out, "tokens.json"), json.dumps(summary).encode())
    return store.commit(work, of)


def counting(sizes: Sequence[int], first: int = 2) -> list[list[list[int]]]:
    """One document for each shard, of consecutive ids that go on from shard to shard; with its end token and its
    filling a shard has the next multiple of 8 above the size."""
    shards = []
    for size in sizes:
        shards.append([list(range(first, first + size))])
        first += size
    return shards


def stream(documents: Documents) -> list[int]:
    """The tokens of a shard of these documents."""
    flat = [id for ids in documents for id in (*ids, END)]
    return flat + [END] * (-len(flat) % 8)
