"""Tensors of a distributed checkpoint without pickle.

torch.distributed.checkpoint writes one file of tensors for each rank, which is read with ``weights_only``, and pickles
an index of them all. Here that index is JSON, so nothing that is read from a checkpoint can run code. For each name it
holds ``dtype``, ``shape`` and ``chunks``, each with ``offset``, ``shape``, and the ``file`` and bytes where it lies.
"""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, BinaryIO

import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.filesystem import FileSystem
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    StorageMeta,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.storage import WriteResult

from bitlm import storage

INDEX_FILE = "tensors.json"
READ_AHEAD = 2**20  # bytes of a remote file asked for at a time


class TensorWriter(dcp.FileSystemWriter):
    """Writes to a local folder. Rank 0 writes the index last."""

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        index: dict[str, Any] = {}
        for name, tensor in metadata.state_dict_metadata.items():
            dtype = str(tensor.properties.dtype).removeprefix("torch.")
            index[name] = {"dtype": dtype, "shape": list(tensor.size), "chunks": []}
        for result in (result for of_rank in results for result in of_rank):
            name, offset, place = result.index.fqn, result.index.offset, result.storage_data
            sizes = {chunk.offsets: chunk.sizes for chunk in metadata.state_dict_metadata[name].chunks}
            index[name]["chunks"].append(
                {
                    "offset": list(offset),
                    "shape": list(sizes[offset]),
                    "file": place.relative_path,
                    "start": place.offset,
                    "bytes": place.length,
                }
            )
        with open(os.path.join(self.path, INDEX_FILE), "w") as file:
            json.dump(index, file)


@dataclass(frozen=True)
class _Place:
    """Where a chunk lies, in the words of ``FileSystemReader``."""

    relative_path: str
    offset: int
    length: int
    transform_descriptors: None = None


class _Files(FileSystem):
    """Read access through the project's storage: retries, credentials from the environment."""

    @contextmanager
    def create_stream(self, path: str | os.PathLike, mode: str) -> Iterator[BinaryIO]:
        assert mode == "rb"
        with storage.open_read(str(path), READ_AHEAD) as file:
            yield file

    def concat_path(self, path: str | os.PathLike, suffix: str) -> str:
        return storage.join(str(path), suffix)


class TensorReader(dcp.FileSystemReader):
    """Reads tensors from a folder at ``url``, local or remote, where ``metadata`` says that they lie."""

    def __init__(self, url: str, metadata: Metadata) -> None:
        super().__init__(url)
        self.fs, self.path = _Files(), url
        self._metadata = metadata

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        return self._metadata


def parse_index(data: bytes) -> Metadata:
    """The content of the index file. Raises ValueError, KeyError, TypeError or AttributeError if it is no index."""
    tensors, places = {}, {}
    for name, entry in json.loads(data).items():
        chunks = []
        for chunk in entry["chunks"]:
            offset = torch.Size(chunk["offset"])
            chunks.append(ChunkStorageMetadata(offset, torch.Size(chunk["shape"])))
            places[MetadataIndex(name, offset)] = _Place(chunk["file"], chunk["start"], chunk["bytes"])
        properties = TensorProperties(dtype=getattr(torch, entry["dtype"]))
        tensors[name] = TensorStorageMetadata(properties, torch.Size(entry["shape"]), chunks)
    return Metadata(tensors, storage_data=places, storage_meta=StorageMeta())


def files_of(metadata: Metadata) -> set[str]:
    return {place.relative_path for place in metadata.storage_data.values()}
