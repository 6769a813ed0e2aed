"""Checkpoints of a training: sharded tensors, the metrics so far, and a record, ``checkpoint.json``.

The record is written last: a folder without one is not complete, and older checkpoints are removed only after it.
It holds the digest of every other file, and all files are verified before any of them is read. Digests detect damage;
against tampering only the access rights of the root help. Nothing that is read here can run code.
"""

import hashlib
import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint.metadata import Metadata

from bitlm import storage
from bitlm.errors import ArtifactError
from bitlm.train import ranks
from bitlm.train.optimizer import materialize
from bitlm.train.tensors import INDEX_FILE, TensorReader, TensorWriter, files_of, parse_index

RECORD = "checkpoint.json"
METRICS = "metrics.jsonl"


@dataclass(frozen=True)
class Checkpoint:
    """A complete checkpoint; ``files`` maps a name below ``url`` to its [bytes, sha256]."""

    step: int
    url: str
    files: dict[str, list]


@dataclass(frozen=True)
class State:
    """What a checkpoint holds of a running training: weights, optimizer state, and the lines of metrics so far."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    lines: list[str]


def folder(root: str, step: int) -> str:
    return storage.join(root, f"step-{step:08d}")


def save(root: str, step: int, state: State, keep: int) -> None:
    """Write the checkpoint of ``step``, then remove all but the newest ``keep``. Every rank must call it."""
    url = folder(root, step)
    ranks.first(lambda: storage.remove_tree(url))  # what an interrupted save may have left
    with _staging(url) as local:
        dcp.save(_tensors(state.model, state.optimizer), storage_writer=TensorWriter(local))
        written = ranks.agree(lambda: _put(local, url))
    files = {name: entry for of_rank in written for name, entry in of_rank.items()}
    ranks.first(lambda: _finish(Checkpoint(step, url, files), state.lines))
    ranks.first(lambda: _prune(root, keep))


def newest(root: str) -> Checkpoint | None:
    """The complete checkpoint of the highest step, or None. Raises ArtifactError for a damaged record."""
    names = [name for name in storage.list_files(root) if name.endswith(f"/{RECORD}")]
    return _read_record(storage.join(root, max(names))) if names else None


def load(checkpoint: Checkpoint, model: nn.Module, optimizer: torch.optim.Optimizer) -> list[str]:
    """Put a checkpoint's tensors into ``model`` and ``optimizer``, on any number of ranks; every rank must call it.

    Returns the lines of metrics up to its step. Raises ArtifactError naming the first file that is missing or not what
    was written: falling back to an older checkpoint is the user's decision.
    """
    names = sorted(checkpoint.files)
    ranks.agree(lambda: [_verify(checkpoint, name) for name in names[ranks.rank() :: ranks.world()]])
    metadata = _index(checkpoint)
    materialize(optimizer)
    try:
        dcp.load(_tensors(model, optimizer), storage_reader=TensorReader(checkpoint.url, metadata))
    except dcp.CheckpointException as error:
        url = storage.join(checkpoint.url, INDEX_FILE)
        reason = str(next(iter(error.failures.values()))[0]).splitlines()[0]
        raise ArtifactError(
            f"checkpoint {checkpoint.url} does not fit this training ({reason}); {_remedy(url)}"
        ) from error
    return storage.read_bytes(storage.join(checkpoint.url, METRICS)).decode().splitlines()


def _tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """Name → tensor, sharded ones as DTensors: weights, the buffers that belong to them, optimizer state."""
    tensors = {f"model.{name}": tensor.detach() for name, tensor in model.state_dict().items()}
    names = {parameter: name for name, parameter in model.named_parameters()}
    for parameter, state in optimizer.state.items():
        tensors |= {f"optimizer.{names[parameter]}.{key}": value for key, value in state.items()}
    return tensors


@contextmanager
def _staging(url: str) -> Iterator[str]:
    """The folder that this rank writes to: the checkpoint's own if it is local, else a temporary one."""
    if storage.is_local(url):
        os.makedirs(storage.local_path(url), exist_ok=True)
        yield storage.local_path(url)
    else:
        with tempfile.TemporaryDirectory(prefix="bitlm-checkpoint-") as local:
            yield local


def _put(local: str, url: str) -> dict[str, list]:
    """Put this rank's files at ``url``: those that DCP names ``__{rank}_…``, and the index of rank 0.

    Returns name → [bytes, sha256].
    """
    own = [name for name in sorted(os.listdir(local)) if name.startswith(f"__{ranks.rank()}_")]
    written: dict[str, list] = {}
    for name in [*own, INDEX_FILE] if ranks.rank() == 0 else own:
        path = os.path.join(local, name)
        in_place = storage.is_local(url)
        written[name] = list(storage.sha256(path) if in_place else storage.upload(path, storage.join(url, name)))
    return written


def _finish(checkpoint: Checkpoint, lines: list[str]) -> None:
    data = "".join(f"{line}\n" for line in lines).encode()
    storage.write_atomic(storage.join(checkpoint.url, METRICS), data)
    checkpoint.files[METRICS] = [len(data), hashlib.sha256(data).hexdigest()]
    body: dict[str, Any] = {"step": checkpoint.step, "files": dict(sorted(checkpoint.files.items()))}
    record = {**body, "record_sha256": _digest(body)}
    storage.write_atomic(storage.join(checkpoint.url, RECORD), json.dumps(record, indent=1).encode())


def _digest(body: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


def _read_record(url: str) -> Checkpoint:
    try:
        record = json.loads(storage.read_bytes(url))
        if record.pop("record_sha256") != _digest(record):
            raise ValueError("its own sha256 differs")
        outside = [name for name in record["files"] if not storage.is_inside(name)]
        if outside:
            raise ValueError(f"{outside[0]!r} is not a path inside its folder")
        return Checkpoint(record["step"], url.removesuffix(f"/{RECORD}"), record["files"])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ArtifactError(f"checkpoint file {url} is damaged ({error}); {_remedy(url)}") from error


def _index(checkpoint: Checkpoint) -> Metadata:
    """Raises ArtifactError if the index names a file that the record does not, which is not verified."""
    url = storage.join(checkpoint.url, INDEX_FILE)
    try:
        metadata = parse_index(storage.read_bytes(url))
        unknown = sorted(files_of(metadata) - checkpoint.files.keys())
        if unknown:
            raise ValueError(f"{unknown[0]} is not in {RECORD}")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ArtifactError(f"checkpoint file {url} is no index of tensors ({error}); {_remedy(url)}") from error
    return metadata


def _verify(checkpoint: Checkpoint, name: str) -> None:
    url, expected = storage.join(checkpoint.url, name), tuple(checkpoint.files[name])
    if not storage.exists(url):
        raise ArtifactError(f"checkpoint file {url} is missing; {_remedy(url)}")
    actual = storage.sha256(url)
    if actual != expected:
        raise ArtifactError(f"checkpoint file {url} {storage.describe_mismatch(actual, expected)}; {_remedy(url)}")


def _remedy(url: str) -> str:
    return f"delete {url.rsplit('/', 1)[0]} to go on from the checkpoint before it"


def _prune(root: str, keep: int) -> None:
    """Remove older checkpoints and what interrupted saves left, each record before the files that it names."""
    files = storage.list_files(root)
    complete = sorted(name.split("/")[0] for name in files if name.endswith(f"/{RECORD}"))
    kept = set(complete[-keep:])
    for name in sorted({file.split("/")[0] for file in files} - kept):
        storage.remove_tree(storage.join(root, name, RECORD))
        storage.remove_tree(storage.join(root, name))
