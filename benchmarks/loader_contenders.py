"""Ways to keep a stream of tokens on disk and to read rows of it, each behind the same few functions.

    python benchmarks/loader_contenders.py NAME FOLDER LENGTH

writes the tokens of FOLDER/tokens.npy in its own way, reads them, and prints its figures as JSON.

The peers that do not go with this environment's versions come from the folder in ``BITLM_BENCH_PEERS``. NumPy and torch
get one thread; figures are tokens per CPU second of the whole process, threads included, the best of three passes.
"""

import json
import os
import sys
import time
import types
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import torch

ROWS, BATCHES = 64, 100
PASSES = 3
PIECE = 2**20  # tokens of the stream asked for at once
DOCUMENT = 700  # tokens of one, about FineWeb's mean
END, NUM_BITS = 151_643, 18  # Qwen3's
SHARD = 2**24  # tokens


class Reader(Protocol):
    bytes: int  # on disk, side files included
    sides: int  # bytes of the side files that map tokens to documents, among them

    def rows(self, indices: np.ndarray) -> torch.Tensor:
        """int64 [n, L]: rows of the stream cut into pieces of L tokens."""
        ...

    def stream(self) -> Iterator[Any]:
        """All tokens in order, in the form and the portions in which the format gives them fastest."""
        ...


class Memmap:
    """A flat file of uint32: what is read is what is used."""

    def __init__(self, tokens: np.ndarray, folder: Path, length: int) -> None:
        path = folder / "tokens.bin"
        tokens.tofile(path)
        self._stream = np.memmap(path, dtype=np.uint32, mode="r")
        self._rows = self._stream[: len(tokens) // length * length].reshape(-1, length)
        self.bytes, self.sides = path.stat().st_size, 0

    def rows(self, indices: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(self._rows[indices].astype(np.int64))

    def stream(self) -> Iterator[np.ndarray]:
        for start in range(0, len(self._stream), PIECE):
            yield np.array(self._stream[start : start + PIECE])


class MemmapRows(Memmap):
    """The same file, read as data sets read it: one row after the other."""

    def rows(self, indices: np.ndarray) -> torch.Tensor:
        return torch.stack([torch.from_numpy(self._rows[index].astype(np.int64)) for index in indices.tolist()])


class Shards:
    """A tokens artifact."""

    def __init__(self, tokens: np.ndarray, folder: Path, length: int) -> None:
        from bitlm.artifacts import Store
        from bitlm.config import PretrainConfig
        from bitlm.data.reading.batches import open_pretrain
        from bitlm.data.shards.format import Shard

        store = Store(str(folder))
        record = _artifact(store, tokens)
        began = time.process_time()
        for entry in record.files:
            with store.local_file(record, entry.path):
                pass
        self.extra = {"verified": len(tokens) / (time.process_time() - began)}
        self.bytes = record.bytes
        self.sides = sum(entry.bytes for entry in record.files if not entry.path.endswith(".arrow"))
        paths = sorted(store.url(record.id, entry.path) for entry in record.files if entry.path.endswith(".arrow"))
        self._shards = [Shard(path) for path in paths]
        self._batches = open_pretrain(store, record, PretrainConfig(sequence_length=length, seed=1))
        self._count = sum(shard.tokens // length for shard in self._shards)
        self._sequences = self._batches._train
        self._sequences.shards.keep(range(len(paths)))

    def rows(self, indices: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(self._sequences.ids(indices))

    def stream(self) -> Iterator[np.ndarray]:
        for shard in self._shards:
            for start in range(0, shard.tokens, PIECE):
                yield shard.ids(start, min(PIECE, shard.tokens - start))

    def training(self) -> Iterator[torch.Tensor]:
        """An epoch in training order: the order itself, windows of shards, and batches ready for a model."""
        for start in range(0, self._count - ROWS, ROWS):
            yield self._batches.train(range(start, start + ROWS)).input_ids


class Datatrove:
    """datatrove's .ds: a flat file of uint32, and one of document ends."""

    def __init__(self, tokens: np.ndarray, folder: Path, length: int) -> None:
        from datatrove.utils.dataset import DatatroveFileDataset

        path = folder / "tokens.ds"
        tokens.tofile(path)
        self.sides = 8 * int((tokens == END).sum())
        self.bytes = path.stat().st_size + self.sides
        self._dataset = DatatroveFileDataset(str(path), length - 1, token_size=4)

    def rows(self, indices: np.ndarray) -> torch.Tensor:
        return torch.stack([self._dataset[index]["input_ids"] for index in indices.tolist()])

    def stream(self) -> Iterator[torch.Tensor]:
        for index in range(len(self._dataset)):
            yield self._dataset[index]["input_ids"]


class Mosaic:
    """Mosaic MDS: rows of a fixed length, a table of offsets in each shard."""

    sides = 0

    def __init__(self, tokens: np.ndarray, folder: Path, length: int) -> None:
        _without_torchvision()
        from streaming import LocalDataset, MDSWriter

        rows = tokens[: len(tokens) // length * length].reshape(-1, length)
        with MDSWriter(out=str(folder / "mds"), columns={"tokens": f"ndarray:uint32:{length}"}) as writer:
            for row in rows:
                writer.write({"tokens": row})
        self.bytes = _size(folder / "mds")
        self._dataset = LocalDataset(str(folder / "mds"))

    def rows(self, indices: np.ndarray) -> torch.Tensor:
        rows = np.stack([self._dataset[index]["tokens"] for index in indices.tolist()])
        return torch.from_numpy(rows.astype(np.int64))

    def stream(self) -> Iterator[np.ndarray]:
        for index in range(len(self._dataset)):
            yield self._dataset[index]["tokens"]


class Litdata:
    """litdata's chunks of tokens, cut into rows by its TokensLoader."""

    sides = 0

    def __init__(self, tokens: np.ndarray, folder: Path, length: int) -> None:
        from litdata import StreamingDataset, TokensLoader, optimize

        whole = folder / "stream.npy"
        np.save(whole, tokens.astype(np.int32))
        optimize(
            _Pieces(str(whole)),
            list(range(0, len(tokens), PIECE)),
            str(folder / "litdata"),
            chunk_bytes="64MB",
            num_workers=1,
            item_loader=TokensLoader(),
            verbose=False,
            keep_data_ordered=True,
        )
        self.bytes = _size(folder / "litdata")
        self._dataset = StreamingDataset(str(folder / "litdata"), item_loader=TokensLoader(block_size=length))

    def rows(self, indices: np.ndarray) -> torch.Tensor:
        return torch.stack([self._dataset[index].long() for index in indices.tolist()])

    def stream(self) -> Iterator[torch.Tensor]:
        yield from self._dataset


class _Pieces:
    """Reads a piece of the stream in litdata's own process."""

    def __init__(self, path: str) -> None:
        self._path = path

    def __call__(self, start: int) -> Iterator[torch.Tensor]:
        yield torch.from_numpy(np.load(self._path, mmap_mode="r")[start : start + PIECE].copy())


CONTENDERS: dict[str, Callable[[np.ndarray, Path, int], Reader]] = {
    "memmap": Memmap,
    "memmap-rows": MemmapRows,
    "shards": Shards,
    "datatrove": Datatrove,
    "mosaic": Mosaic,
    "litdata": Litdata,
}


def measure(reader: Reader, tokens: np.ndarray, length: int) -> dict[str, Any]:
    """Tokens per CPU second of each way to read, after a check that what is read is what was written."""
    count = len(tokens) // length
    picks = np.random.default_rng(5).integers(0, count - ROWS, (BATCHES, ROWS))
    expected = tokens[: count * length].reshape(-1, length)
    assert np.array_equal(reader.rows(picks[0]).numpy(), expected[picks[0]].astype(np.int64))
    first = np.asarray(next(iter(reader.stream()))).ravel()
    assert np.array_equal(first, tokens[: len(first)])
    found = {
        "bytes_per_token": (reader.bytes - reader.sides) / len(tokens),
        "with_documents": reader.bytes / len(tokens),
        "random": _rate(lambda: sum(reader.rows(some).numel() for some in picks)),
        "sequential": _rate(lambda: sum(_count(part) for part in reader.stream())),
    }
    if isinstance(reader, Shards):
        found |= reader.extra | {"training": _rate(lambda: sum(ids.numel() for ids in reader.training()))}
    return found


def _count(part: Any) -> int:
    return part.numel() if isinstance(part, torch.Tensor) else part.size


def _rate(read: Callable[[], int]) -> float:
    best = 0.0
    for _ in range(PASSES):
        began = time.process_time()
        tokens = read()
        best = max(best, tokens / (time.process_time() - began))
    return best


def _artifact(store: Any, tokens: np.ndarray) -> Any:
    """A tokens artifact of the stream, which is cut into documents at its end tokens."""
    import io

    from bitlm import storage
    from bitlm.artifacts import Draft, fingerprint
    from bitlm.data.shards.format import ShardWriter

    work = store.begin("tokens", "benchmark", fingerprint("tokens", 1, {}, {}))
    shards = []
    for number, start in enumerate(range(0, len(tokens), SHARD)):
        part = tokens[start : start + SHARD]
        ends = np.flatnonzero(part == END)
        assert ends[-1] == len(part) - 1
        lengths = np.diff(ends, prepend=-1) - 1
        ids = pa.array([f"<urn:uuid:{start + end:036x}>" for end in ends])
        writer = ShardWriter(NUM_BITS, END)
        writer.add(part[part != END], lengths, ids, np.arange(len(ends)), "source.parquet")
        files = {".arrow": io.BytesIO(), ".docs.parquet": io.BytesIO()}
        counts = writer.write(*files.values())
        for suffix, file in files.items():
            storage.write_atomic(storage.join(work.out, f"shards/train/{number:05d}{suffix}"), file.getvalue())
        shards.append({"path": f"shards/train/{number:05d}.arrow", "tokens": counts.tokens})
    empty = {"shards": [], "tokens": 0, "filling": 0, "text_bytes": 0}
    summary = {"num_bits": NUM_BITS, "splits": {"train": {"shards": shards}, "validation": empty}}
    storage.write_atomic(storage.join(work.out, "tokens.json"), json.dumps(summary).encode())
    print_ = fingerprint("tokens", 1, {}, {})
    return store.commit(work, Draft("tokens", "benchmark", print_, 1, {}, {}, {}, {}, datetime.now(UTC)))


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _without_torchvision() -> None:
    """mosaicml-streaming imports it for its data sets of images, which are not wanted here."""
    for name, holds in (
        ("torchvision", {}),
        ("torchvision.datasets", {"VisionDataset": object}),
        ("torchvision.transforms", {}),
        ("torchvision.transforms.functional", {"to_tensor": None}),
    ):
        module = types.ModuleType(name)
        module.__spec__, module.__path__ = ModuleSpec(name, None), []
        vars(module).update(holds)
        sys.modules[name] = module


def main() -> None:
    name, folder, length = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
    if peers := os.environ.get("BITLM_BENCH_PEERS"):
        sys.path.append(peers)  # last: the environment's own packages come first
    torch.set_num_threads(1)
    tokens = np.load(folder / "tokens.npy")
    place = folder / name
    place.mkdir()
    found = measure(CONTENDERS[name](tokens, place, length), tokens, length)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
