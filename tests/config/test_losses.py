"""Which losses go with which model: told in one line that names the keys."""

import pytest

from bitlm.config import configure
from bitlm.errors import ConfigError

CAUSAL = ["model.head.attention=causal", "model.mask=causal", "model.head.denoiser=codebook"]


@pytest.mark.parametrize("stage", ["pretrain", "finetune"])
@pytest.mark.parametrize(
    ("model", "losses", "message"),
    [
        (["model.head.attention=full"], ["chain_slots=1"], "chain_slots = 1 needs model.head.attention = causal"),
        ([], ["chain_slots=5"], "chain_slots = 5 is more than model.block_size = 4"),
        ([], ["chain_slots=1", "block_offsets=5"], "block_offsets = 5 is more than model.block_size = 4"),
        (
            ["model.mask=block"],
            ["chain_slots=1", "block_offsets=2"],
            "block_offsets = 2 needs model.mask = causal and {}chain_slots of 1 or more",
        ),
        ([], ["chain_slots=0", "block_offsets=2"], "block_offsets = 2 needs model.mask = causal and {}chain_slots of"),
        ([], ["chain_slots=0", "noise_share=0"], "noise_share = 0 needs {}chain_slots of 1 or more"),
        ([], ["chain_slots=0", "noise_share=0.5"], "noise_share = 0.5 needs {}chain_slots of 1 or more"),
        (["model.mask=block"], ["next_token_weight=0.5"], "next_token_weight = 0.5 needs model.mask = causal and"),
        (
            ["model.head.denoiser=direct"],
            ["next_token_weight=0.5"],
            "next_token_weight = 0.5 needs model.mask = causal and model.head.denoiser = codebook",
        ),
    ],
)
def test_losses_that_the_model_cannot_compute(stage: str, model: list[str], losses: list[str], message: str) -> None:
    prefix = f"{stage}.diffusion."
    with pytest.raises(ConfigError) as told:
        configure("tiny-article", [*CAUSAL, *model, *(prefix + setting for setting in losses)])
    assert f"{prefix}{message.format(prefix)}" in str(told.value)
    assert "\n" not in str(told.value)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("prefix_share=1.5", "prefix_share = 1.5: Input should be less than or equal to 1"),
        ("uniform_share=-0.1", "uniform_share = -0.1: Input should be greater than or equal to 0"),
        ("t_low=1", "t_low = 1: Input should be less than 1"),
        ("noise_share=2", "noise_share = 2: Input should be less than or equal to 1"),
        ("chain_slots=-1", "chain_slots = -1: Input should be greater than or equal to 0"),
        ("block_offsets=0", "block_offsets = 0: Input should be greater than or equal to 1"),
        ("next_token_weight=-1", "next_token_weight = -1: Input should be greater than or equal to 0"),
    ],
)
def test_a_value_without_a_meaning_is_told(setting: str, message: str) -> None:
    with pytest.raises(ConfigError) as told:
        configure("tiny-article", [f"finetune.diffusion.{setting}"])
    assert str(told.value) == f"finetune.diffusion.{message}"


def test_all_of_them_together() -> None:
    losses = ["chain_slots=4", "block_offsets=4", "noise_share=0", "next_token_weight=0.1"]
    settings = [f"{stage}.diffusion.{setting}" for stage in ("pretrain", "finetune") for setting in losses]
    assert configure("tiny-article", [*CAUSAL, *settings]).finetune.diffusion.block_offsets == 4
