"""Training, from the first step or the newest checkpoint to the finished model, on one rank or many."""

import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from bitlm import storage
from bitlm.batch import Batch
from bitlm.config import TrainConfig
from bitlm.data.reading.prefetch import prefetch
from bitlm.devices import find_device
from bitlm.errors import ConfigError
from bitlm.model.config import BitLMConfig
from bitlm.model.model import BitLMForCausalLM
from bitlm.train import checkpoint, ranks
from bitlm.train.batches import Batches
from bitlm.train.checkpoint import State
from bitlm.train.optimizer import make_optimizer, set_learning_rate
from bitlm.train.placement import set_weights, sharded_model, skeleton, whole_weights
from bitlm.train.schedule import learning_rate
from bitlm.train.step import train_step
from bitlm.train.validate import validate

FINAL_STEPS = 20  # steps whose mean is the final training loss

Report = Callable[[dict[str, Any]], None]


@dataclass(frozen=True)
class Folders:
    """URLs: where the checkpoints of a training lie, and where its result is written."""

    checkpoints: str
    out: str


@dataclass(frozen=True)
class Setup:
    """One training of a model that ``architecture`` describes.

    ``initial_model`` makes it with the weights to start from. It is called on rank 0 only, and not at all when the
    training goes on from a checkpoint. ``extra_files``, name → content, are written into the finished model's folder.
    """

    config: TrainConfig
    architecture: BitLMConfig
    initial_model: Callable[[], BitLMForCausalLM]
    batches: Batches
    folders: Folders
    extra_files: dict[str, bytes]


def train(setup: Setup, *, report: Report) -> dict[str, Any]:
    """Run to the last step and write ``model/`` and ``metrics.jsonl`` below ``folders.out``; returns the final figures
    (``train_seconds``: of the steps, validation not included).

    Every rank calls it (torch.distributed started before, or not at all for one rank), and each gets the same figures.
    ``report`` is called on rank 0 with every line of metrics. Resumes from the newest complete checkpoint. Raises
    ArtifactError for a damaged one, BitLMError naming the step when the training diverges, ConfigError for a GPU that
    torch cannot use.
    """
    device = find_device("cuda" if setup.config.execution.use_gpu else "cpu")
    if device.type == "cuda":
        device = torch.device("cuda", torch.cuda.current_device())
    with closing(setup.batches), ranks.process_group(device), _deterministic(device):
        return _train(setup, device, report)


def _train(setup: Setup, device: torch.device, report: Report) -> dict[str, Any]:
    config = setup.config
    if config.batch_size % ranks.world():
        raise ConfigError(f"batch_size = {config.batch_size} does not divide among {ranks.world()} workers")
    model = sharded_model(setup.architecture, device, config.precision)
    state = State(model, make_optimizer(model, config), [])
    newest = ranks.first(lambda: checkpoint.newest(setup.folders.checkpoints))
    if newest:
        state.lines.extend(checkpoint.load(newest, model, state.optimizer))
    else:
        set_weights(model, setup.initial_model)
    steps = range(newest.step + 1 if newest else 1, config.steps + 1)
    shares = (_share(step, config.batch_size) for step in steps)
    with prefetch(setup.batches.train, shares) as upcoming:
        for step in steps:
            for line in _advance(setup, state, step, upcoming):
                if ranks.rank() == 0:
                    report(line)
                state.lines.append(json.dumps(line))
            if step % config.execution.checkpoint_every == 0 or step == config.steps:
                checkpoint.save(setup.folders.checkpoints, step, state, config.execution.keep_checkpoints)
    weights = whole_weights(model)
    ranks.first(lambda: _write(setup, weights, state.lines))
    return {**_summary(state.lines, model), "resumed_from_step": newest.step if newest else 0}


def _advance(setup: Setup, state: State, step: int, upcoming: Iterator[Batch]) -> list[dict[str, Any]]:
    """One step on the next batch, and a validation if one is due; their lines of metrics."""
    config = setup.config
    began = time.perf_counter()
    rate = learning_rate(step, config)
    set_learning_rate(state.optimizer, rate)
    result = train_step(state.model, state.optimizer, next(upcoming), step, config)
    seconds = time.perf_counter() - began
    lines: list[dict[str, Any]] = [
        {
            "step": step,
            "loss": result.loss,
            "learning_rate": rate,
            "grad_norm": result.grad_norm,
            "tokens": result.tokens,
            "tokens_per_second": result.tokens / seconds,
            "seconds": seconds,
        }
    ]
    if step % config.validate_every == 0 or step == config.steps:
        lines.append({"step": step, **validate(state.model, setup.batches, config)})
    return lines


def _share(step: int, batch_size: int) -> range:
    """This rank's slice of the positions of step 1, 2, …"""
    size = batch_size // ranks.world()
    start = (step - 1) * batch_size + ranks.rank() * size
    return range(start, start + size)


@contextmanager
def _deterministic(device: torch.device) -> Iterator[None]:
    """On a CPU, the same run gives the same weights bit for bit. On a GPU that would cost too much."""
    before = torch.are_deterministic_algorithms_enabled(), torch.utils.deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(device.type == "cpu")
    torch.utils.deterministic.fill_uninitialized_memory = False
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0])
        torch.utils.deterministic.fill_uninitialized_memory = before[1]


def _write(setup: Setup, weights: dict[str, torch.Tensor], lines: list[str]) -> None:
    model = skeleton(setup.architecture)
    model.load_state_dict(weights, strict=True, assign=True)
    url = storage.join(setup.folders.out, "model")
    with tempfile.TemporaryDirectory(prefix="bitlm-model-") as folder:
        model.save_pretrained(folder)
        for name in sorted(os.listdir(folder)):
            storage.upload(os.path.join(folder, name), storage.join(url, name))
    for name, content in setup.extra_files.items():
        storage.write_atomic(storage.join(url, name), content)
    storage.write_atomic(
        storage.join(setup.folders.out, "metrics.jsonl"), "".join(f"{line}\n" for line in lines).encode()
    )


def _summary(lines: list[str], model: BitLMForCausalLM) -> dict[str, Any]:
    figures = [json.loads(line) for line in lines]
    steps = [line for line in figures if "loss" in line]
    validation = {key: value for key, value in figures[-1].items() if key != "step"}
    last = [line["loss"] for line in steps[-FINAL_STEPS:]]
    tokens, seconds = sum(line["tokens"] for line in steps), sum(line["seconds"] for line in steps)
    total = sum(parameter.numel() for parameter in model.parameters())
    head = sum(parameter.numel() for parameter in model.head.parameters())
    return {
        **validation,
        "train_loss": sum(last) / len(last),
        "steps": steps[-1]["step"],
        "tokens": tokens,
        "tokens_per_second": tokens / seconds,
        "train_seconds": seconds,
        "parameters": {"backbone": total - head, "head": head, "total": total},
    }
