import pytest
import torch
from toy_training import toy_model

from bitlm.config import PretrainConfig
from bitlm.train.optimizer import decay_groups, make_optimizer, materialize

CONFIG = PretrainConfig(steps=110, warmup_steps=10, learning_rate=2.0, final_lr_ratio=0.1)


@pytest.mark.parametrize("head", ["diffusion", "lm"])
def test_matrices_decay_and_vectors_do_not(head: str) -> None:
    model = toy_model(head)
    decayed, spared = decay_groups(model.parameters(), 0.1)
    names = {parameter: name for name, parameter in model.named_parameters()}
    assert (decayed["weight_decay"], spared["weight_decay"]) == (0.1, 0.0)
    assert all(name.endswith(("norm.weight", "bias")) for name in map(names.get, spared["params"]))
    assert "model.embed_tokens.weight" in map(names.get, decayed["params"])
    assert len(decayed["params"]) + len(spared["params"]) == len(names)


def test_decay_shrinks_matrices_only() -> None:
    model = toy_model("diffusion")
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    optimizer = make_optimizer(model, CONFIG.model_copy(update={"weight_decay": 0.25, "learning_rate": 0.1}))
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    for name, parameter in model.named_parameters():
        expected = before[name] * (0.975 if parameter.ndim == 2 else 1)
        torch.testing.assert_close(parameter.detach(), expected)


@pytest.mark.parametrize("optimizer_name", ["adamw", "muon"])
def test_materialize_moves_nothing(optimizer_name: str) -> None:
    model = toy_model("diffusion")
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    optimizer = make_optimizer(model, CONFIG.model_copy(update={"optimizer": optimizer_name}))
    materialize(optimizer)
    assert all(torch.equal(parameter, before[name]) for name, parameter in model.named_parameters())
    assert len(optimizer.state) == len(before)
    assert {group["lr"] for group in optimizer.param_groups} == ({2.0} if optimizer_name == "adamw" else {2.0, 0.02})
