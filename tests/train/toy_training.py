"""A training small enough for a test: some thousand weights, and sequences that are functions of their index."""

import json
import os
import tempfile
from collections.abc import Callable, Sequence
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from safetensors.torch import load_file

from bitlm.batch import Batch
from bitlm.config import PretrainConfig
from bitlm.model.config import BitLMConfig
from bitlm.model.model import BitLMForCausalLM
from bitlm.train.loop import Folders, Setup, train

LENGTH, ROWS, VALIDATION_ROWS = 16, 24, 7
CHAIN = {
    "loss": "token",
    "chain_slots": 2,
    "block_offsets": 3,
    "noise_share": 0.3,
    "next_token_weight": 0.1,
    "prefix_share": 0.3,
    "uniform_share": 0.2,
}


class ToyBatches:
    """Counting sequences; ``masked`` gives them left padding and loss on some blocks only, as fine-tuning has."""

    validation_count = VALIDATION_ROWS
    bytes_per_token = 2.0

    def __init__(self, m: int, masked: bool = False) -> None:
        self.m, self.masked = m, masked

    def train(self, positions: range) -> Batch:
        return self._rows([p % ROWS for p in positions], [p // ROWS for p in positions])

    def validation(self, indices: Sequence[int]) -> Batch:
        return self._rows([1000 + i for i in indices], [0] * len(indices))

    def close(self) -> None:
        pass

    def _rows(self, indices: list[int], epochs: list[int]) -> Batch:
        index = torch.tensor(indices)[:, None]
        ids = (index * 7 + torch.arange(LENGTH) * (index % 5 + 1)) % 50
        if not self.masked:
            return Batch(ids, None, None, indices, epochs)
        padding = index % 3  # tokens of padding
        mask = (torch.arange(LENGTH)[None] >= padding).long()
        blocks = torch.arange(LENGTH // self.m)[None] >= LENGTH // self.m - 1 - index % 2
        return Batch(ids, mask, blocks.repeat_interleave(self.m, dim=1), indices, epochs)


def toy_architecture(head: str) -> BitLMConfig:
    """``head``: diffusion, lm, codebook, the diffusion head over tokens with noise, or chain, behind clean prefixes."""
    options = {"head": head, "block_size": 1 if head == "lm" else 4}
    shape = {}
    if head == "codebook":
        options |= {"head": "diffusion", "slot_embedding": True}
        shape = {"denoiser": "codebook", "context_path": "direct", "codebook_rank": 16}
    if head == "chain":
        options |= {"head": "diffusion", "mask": "causal"}
        shape = {"denoiser": "codebook", "context_path": "attention", "attention": "causal"}
    return BitLMConfig(
        **options,
        vocab_size=50,
        embedding_rows=128,
        num_bits=6,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        intermediate_size=48,
        diffusion_head={"num_layers": 2, "head_dim": 16, **shape},
        end_token_id=0,
        pad_token_id=1,
    )


def toy_model(head: str) -> BitLMForCausalLM:
    torch.manual_seed(0)
    model = BitLMForCausalLM(toy_architecture(head))
    if model.config.has_codebook:
        model.set_unigram(torch.arange(50))
    return model


def no_model() -> BitLMForCausalLM:
    raise AssertionError("a model was made")


def toy_setup(
    folder: Path | str,
    head: str = "diffusion",
    masked: bool = False,
    execution: dict[str, Any] | None = None,
    initial_model: Callable[[], BitLMForCausalLM] | None = None,
    **config: Any,
) -> Setup:
    defaults = {
        "steps": 6,
        "batch_size": 4,
        "learning_rate": 3e-3,
        "warmup_steps": 2,
        "validate_every": 3,
        "validation_batches": 2,
    }
    if head == "codebook":
        defaults["diffusion"] = {"loss": "token", "slot_noise": 0.5}
    if head == "chain":
        defaults["diffusion"] = CHAIN
    return Setup(
        config=PretrainConfig(**{**defaults, **config, "execution": {"checkpoint_every": 2, **(execution or {})}}),
        architecture=toy_architecture(head),
        initial_model=initial_model or partial(toy_model, head),
        batches=ToyBatches(1 if head == "lm" else 4, masked),
        folders=Folders(f"{folder}/checkpoints", f"{folder}/out"),
        extra_files={"tokenizer.json": b"{}"},
    )


def run(folder: Path, **options: Any) -> list[dict[str, Any]]:
    """One rank, in this process; returns the lines that were reported."""
    reported: list[dict[str, Any]] = []
    train(toy_setup(folder, **options), report=reported.append)
    return reported


def run_ranks(world: int, trainings: Sequence[tuple[Path, dict[str, Any]]]) -> None:
    """Several trainings, each a folder and the options of ``toy_setup``, by ``world`` processes over gloo."""
    with tempfile.TemporaryDirectory() as meeting:
        mp.start_processes(_rank, args=(world, meeting, trainings), nprocs=world, start_method="forkserver")


def _rank(rank: int, world: int, meeting: str, trainings: Sequence[tuple[Path, dict[str, Any]]]) -> None:
    torch.set_num_threads(1)
    store = dist.FileStore(os.path.join(meeting, "store"), world)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=world, timeout=timedelta(seconds=120))
    try:
        for folder, options in trainings:
            train(toy_setup(folder, **options), report=lambda line: None)
    finally:
        dist.destroy_process_group()
    os._exit(0)  # an orderly exit may abort: torch 2.13 then destroys threads of gloo that still run


def metrics(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "out" / "metrics.jsonl").read_text().splitlines()]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "out" / "model" / "model.safetensors")


def losses(folder: Path) -> list[float]:
    return [line["loss"] for line in metrics(folder) if "loss" in line]


def grad_norms(folder: Path) -> list[float]:
    return [line["grad_norm"] for line in metrics(folder) if "loss" in line]


def validations(folder: Path) -> list[float]:
    return [line["validation_nats_per_token"] for line in metrics(folder) if "loss" not in line]


def same(a: Path, b: Path) -> bool:
    left, right = weights(a), weights(b)
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def stop_at(step: int) -> Callable[[dict[str, Any]], None]:
    """A report that kills the training when it hears of ``step``."""

    def report(line: dict[str, Any]) -> None:
        if line["step"] == step:
            raise KeyboardInterrupt

    return report
