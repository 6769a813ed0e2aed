"""Muon on matrices that two processes share. Apart from the test, so that the processes load little."""

import os
from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from bitlm.train.muon import Muon


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def steps_of_rank(rank: int, world: int, folder: str, shapes: Sequence[tuple[int, int]]) -> None:
    """Three steps from ``random`` weights along ``random`` gradients; rank 0 writes the whole matrices."""
    torch.set_num_threads(1)
    store = dist.FileStore(os.path.join(folder, "store"), world)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=world)
    layers = nn.Sequential(*(nn.Linear(columns, rows, bias=False) for rows, columns in shapes))
    for layer, shape in zip(layers, shapes, strict=True):
        layer.weight.data = random(*shape)
    fully_shard(layers)
    muon = Muon(layers.parameters(), lr=0.02, weight_decay=0.1)
    for seed in range(1, 4):
        for parameter in layers.parameters():
            assert isinstance(parameter, DTensor)
            gradient = random(*parameter.shape, seed=seed)
            parameter.grad = distribute_tensor(gradient, parameter.device_mesh, parameter.placements)
        muon.step()
    whole = [parameter.full_tensor() for parameter in layers.parameters()]
    if rank == 0:
        torch.save(whole, os.path.join(folder, "weights"))
    dist.barrier()
    os._exit(0)  # an orderly exit may abort: torch 2.13 then destroys threads of gloo that still run
