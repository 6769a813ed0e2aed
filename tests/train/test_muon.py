"""Muon against its definition, torch's own, and itself on two ranks."""

import os
import tempfile
from pathlib import Path

import pytest
import sharded_muon
import torch
import torch.multiprocessing as mp
from sharded_muon import random
from torch import nn
from toy_training import losses, run, same, stop_at, toy_model, toy_setup

from bitlm.config import PretrainConfig
from bitlm.train.loop import train
from bitlm.train.muon import COEFFICIENTS, ITERATIONS, Muon, orthogonalized
from bitlm.train.optimizer import hidden_matrices, make_optimizer, set_learning_rate

SHAPES = [(5, 12), (12, 5), (8, 8), (3, 1), (1, 3)]


@pytest.mark.parametrize("shape", SHAPES)
def test_orthogonalizing_maps_each_singular_value_by_the_polynomial(shape: tuple[int, int]) -> None:
    """In float64 through the singular vectors, which Newton-Schulz never computes."""
    matrix = random(*shape)
    u, values, vh = torch.linalg.svd(matrix.double(), full_matrices=False)
    values = values / values.norm()
    a, b, c = COEFFICIENTS
    for _ in range(ITERATIONS):
        values = a * values + b * values**3 + c * values**5
    torch.testing.assert_close(orthogonalized(matrix).double(), u @ values.diag() @ vh, rtol=0, atol=0.03)


@pytest.mark.parametrize("shape", SHAPES)
def test_steps_are_those_of_torch(shape: tuple[int, int]) -> None:
    ours, theirs = nn.Parameter(random(*shape)), nn.Parameter(random(*shape))
    muon = Muon([ours], lr=0.02, weight_decay=0.1)
    reference = torch.optim.Muon([theirs], lr=0.02, weight_decay=0.1)
    for seed in range(1, 5):
        for parameter, optimizer in ((ours, muon), (theirs, reference)):
            parameter.grad = random(*shape, seed=seed)
            optimizer.step()
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)


def test_hidden_matrices_are_muons_and_all_else_adamws() -> None:
    for head, expected in (("diffusion", 1 + 2 + 2 * 7 + 2 * 4 + 1 + 1), ("lm", 2 * 7)):
        model = toy_model(head)
        names = {parameter: name for name, parameter in model.named_parameters()}
        hidden = {names[parameter] for parameter in hidden_matrices(model)}
        assert len(hidden) == expected  # context, time, layers of backbone and head, modulations
        optimizer = make_optimizer(
            model, PretrainConfig(optimizer="muon", learning_rate=0.0006, muon_learning_rate=0.04)
        )
        muon, *adamw = ({names[parameter] for parameter in group["params"]} for group in optimizer.param_groups)
        assert muon == hidden
        assert sorted([*muon, *adamw[0], *adamw[1]]) == sorted(names.values())
        set_learning_rate(optimizer, 0.003)
        assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.2, 0.003, 0.003])
        assert not {n for n in muon if "embed" in n or "start" in n or "null" in n or n.endswith("put.weight")}


def test_resumed_is_bit_identical_to_undisturbed(tmp_path: Path) -> None:
    run(tmp_path / "whole", optimizer="muon")
    with pytest.raises(KeyboardInterrupt):
        train(toy_setup(tmp_path / "cut", optimizer="muon"), report=stop_at(5))
    assert run(tmp_path / "cut", optimizer="muon")[0]["step"] == 5
    assert same(tmp_path / "whole", tmp_path / "cut")
    assert losses(tmp_path / "cut") == losses(tmp_path / "whole")
    run(tmp_path / "adamw")
    assert not same(tmp_path / "whole", tmp_path / "adamw")


def test_training_with_muon_learns(tmp_path: Path) -> None:
    run(tmp_path, optimizer="muon", steps=40, execution={"checkpoint_every": 100})
    assert sum(losses(tmp_path)[-5:]) < 0.9 * sum(losses(tmp_path)[:5])


def test_sharded_matrices_move_exactly_as_whole_ones() -> None:
    with tempfile.TemporaryDirectory() as folder:
        mp.start_processes(sharded_muon.steps_of_rank, args=(2, folder, SHAPES), nprocs=2, start_method="forkserver")
        sharded = torch.load(os.path.join(folder, "weights"), weights_only=True)
    whole = [nn.Parameter(random(*shape)) for shape in SHAPES]
    muon = Muon(whole, lr=0.02, weight_decay=0.1)
    for seed in range(1, 4):
        for parameter in whole:
            parameter.grad = random(*parameter.shape, seed=seed)
        muon.step()
    assert all(torch.equal(a, b) for a, b in zip(whole, sharded, strict=True))
