"""No tensor of a model's device meets one of the CPU: in generation, in training, in validation, in a CUDA graph.

A run on a GPU is followed step by step on a device that is not there (``second_device``).
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from second_device import CPU, CUDA, second_device, tensors_in
from small_models import small_model
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

sys.path.append(str(Path(__file__).parent / "train"))
from toy_training import toy_setup

from bitlm.diffusion.bound import nats_per_token
from bitlm.generation import denoiser
from bitlm.train import ranks, step
from bitlm.train.optimizer import make_optimizer, materialize
from bitlm.train.step import train_step
from bitlm.train.validate import validate

PROMPTS = [[1, 2, 3, 4, 5], [7], [3] * 9]
CHAIN = {"denoiser": "codebook", "attention": "causal", "context_path": "attention", "mask": "causal"}
COMMIT = {"sampler": "commit", "num_steps": 15}
ALL_OPTIONS = {"codebook_candidates": 8, "codebook_rank": 8, "slot_embedding": True, "context_path": "direct"}


def test_devices_do_not_mix() -> None:
    with second_device() as device:
        there, here = torch.zeros(2, 3, device=device), torch.ones(2, 3)
        for tensor in (
            there + 1,
            there[0].view(3, 1),
            here.to("cuda:0"),
            there.new_zeros(2),
            there + torch.tensor(2.0),
        ):
            assert tensor.device == CUDA
            assert tensor.is_cuda
        for tensor in (here, there.cpu(), there.to("cpu"), here.new_zeros(2), torch.empty(3), torch.tensor([1, 2])):
            assert tensor.device == CPU
        for mix in (lambda: there + here, lambda: torch.cat([there, here]), lambda: there[torch.tensor([0, 1, 1])]):
            with pytest.raises(RuntimeError, match="on cuda and on the CPU"):
                mix()
        with pytest.raises(TypeError):
            there.numpy()
        weight = nn.Linear(3, 3).to(device).weight
        (there @ weight).sum().backward()
        assert weight.grad.device == CUDA


@pytest.mark.parametrize(
    ("model", "options"),
    [
        ({"head": "lm"}, {"temperature": 1.0}),
        ({"denoiser": "direct"}, {"guidance_scale": 1.0}),
        ({"denoiser": "matched_filter", "context_path": "direct"}, {"stagger": 1.0, "guidance_form": "logit"}),
        ({"denoiser": "codebook_prior"}, {"void": "nearest", "trace": True, "time_grid": "shifted"}),
        ({"denoiser": "codebook", **ALL_OPTIONS}, {"stagger": 0.5, "guidance_form": "token", "solver": "dpmpp_2m"}),
        ({"denoiser": "codebook"}, {"guidance_low": 0.3, "guidance_high": 0.8, "stagger": 0.5}),
        ({"denoiser": "codebook", **ALL_OPTIONS}, COMMIT | {"threshold": 0.1, "temperature": 1.0, "trace": True}),
        ({"denoiser": "direct"}, COMMIT | {"order": "surest", "guidance_scale": 2.0, "temperature": 0.5}),
        (CHAIN, COMMIT | {"guidance_scale": 2.0, "temperature": 1.0}),
        (CHAIN, {"stagger": 1.0}),
    ],
)
def test_generation_stays_on_the_models_device(model: dict[str, Any], options: dict[str, Any]) -> None:
    made = small_model(**model)
    options = {"max_new_tokens": 12, "num_steps": 4} | options
    expected = made.generate(PROMPTS, **options)
    with second_device() as device:
        output = made.to(device).generate(PROMPTS, **options)
        assert all(state.device == CPU for states in output.states for state in states)
    assert (output.ids, output.calls) == (expected.ids, expected.calls)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(
    ("head", "optimizer"), [("diffusion", "adamw"), ("lm", "adamw"), ("codebook", "muon"), ("chain", "adamw")]
)
def test_training_stays_on_the_models_device(
    head: str, optimizer: str, masked: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two steps and a validation, without shards."""
    monkeypatch.setattr(step, "_clip_gradients", _clip)
    setup = toy_setup(tmp_path, head, masked, optimizer=optimizer, execution={"micro_batch_size": 3})

    def trained(device: torch.device) -> tuple[Any, ...]:
        model = setup.initial_model().to(device)
        model.reshard = lambda: None
        optimizer = make_optimizer(model, setup.config)
        materialize(optimizer)
        shares = [setup.batches.train(range(start, start + 4)) for start in (0, 4)]
        steps = [train_step(model, optimizer, share, k, setup.config) for k, share in enumerate(shares)]
        staggered = nats_per_token(model, [setup.batches.validation([0, 1]).to(device)], stagger=0.5)
        assert all(value.device.type == device.type for value in model.state_dict().values())
        return steps, validate(model, setup.batches, setup.config), staggered

    with ranks.process_group(CPU):
        expected = trained(CPU)
        with second_device() as device:
            assert trained(device) == expected


def _clip(model: nn.Module, scale: float, max_norm: float) -> float:
    """``step._clip_gradients`` for parameters that are no shards."""
    gradients = [parameter.grad for parameter in model.parameters()]
    norm = scale * float(torch.nn.utils.get_total_norm(gradients))
    for gradient in gradients:
        gradient.mul_(scale * min(1.0, max_norm / norm))
    return norm


class Graph(TorchDispatchMode):
    """A CUDA graph: the operations of a capture, which ``replay`` runs again on the memory that they were given. What a
    capture cannot hold is refused: values that the host reads, and memory of the host."""

    captured = 0

    def __init__(self) -> None:
        super().__init__()
        self._operations: list[tuple] = []
        Graph.captured += 1

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        assert func is not torch.ops.aten._local_scalar_dense.default, "the host reads a value"
        self._operations.append((func, args, kwargs, result))
        return result

    def replay(self) -> None:
        for func, args, kwargs, result in self._operations:
            for old, new in zip(tensors_in(result), tensors_in(func(*args, **kwargs)), strict=True):
                if old.data_ptr() != new.data_ptr():
                    old.copy_(new)


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> None:
    """CUDA's streams and graphs, and a compiler that leaves the head as it is."""

    @contextmanager
    def capture(graph: Graph, stream: Any) -> Iterator[None]:
        with graph:
            yield

    stream = SimpleNamespace(wait_stream=lambda other: None)
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: stream)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: stream)
    monkeypatch.setattr(torch.cuda, "stream", _nothing)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "graph", capture)
    monkeypatch.setattr(denoiser, "_compiled_head", lambda: lambda head, *inputs: head(*inputs))
    monkeypatch.setattr(denoiser, "_compiled_answer", lambda: lambda of, name, *given: getattr(of, name)(*given))
    monkeypatch.setattr(Graph, "captured", 0)


@contextmanager
def _nothing(*args: Any) -> Iterator[None]:
    yield


@pytest.mark.usefixtures("graphs")
@pytest.mark.parametrize(
    ("model", "sampler"),
    [
        ({"denoiser": "matched_filter"}, {"num_steps": 4, "stagger": 0.5, "void": "nearest", "guidance_scale": 1.0}),
        ({"denoiser": "codebook", **ALL_OPTIONS}, {"num_steps": 4, "guidance_scale": 2.0, "solver": "dpmpp_2m"}),
        ({"denoiser": "codebook", **ALL_OPTIONS}, {"sampler": "commit", "order": "surest", "temperature": 0.7}),
        ({"denoiser": "matched_filter"}, {"sampler": "commit", "guidance_scale": 2.0}),
        (CHAIN, {"sampler": "commit", "temperature": 0.7}),
    ],
)
def test_a_cuda_graph_gives_what_its_steps_give(model: dict[str, Any], sampler: dict[str, Any]) -> None:
    made = small_model(**model)
    options = {"max_new_tokens": 16, **sampler}
    made.config.end_token_id = -1
    made.config.end_token_id = made.generate(PROMPTS, **options).ids[0][5]
    expected = made.generate(PROMPTS, **options)
    assert len(set(expected.blocks)) > 1, "the batch does not shrink"
    with second_device() as device:
        output = made.to(device).generate(PROMPTS, compile=True, **options)
        captured = Graph.captured
        made.generate(PROMPTS, compile=True, **options)
    assert (output.ids, output.calls) == (expected.ids, expected.calls)
    assert 0 < Graph.captured == captured, "a graph is captured once"
