"""Mask, positions and the scaled start against their definitions."""

import math
from pathlib import Path

import pytest
import torch

from bitlm.model import BitLMConfig, BitLMForCausalLM
from bitlm.model.backbone import attention_mask, block_causal_mask, positions


@pytest.mark.parametrize("m", [1, 2, 3, 4, 8])
@pytest.mark.parametrize("length", [1, 4, 7, 24])
def test_mask_is_the_definition(length: int, m: int) -> None:
    mask = block_causal_mask(length, m)
    for i in range(length):
        for j in range(length):
            assert bool(mask[i, j]) == (j // m <= i // m)


def test_blocks_of_one_are_causal() -> None:
    assert torch.equal(block_causal_mask(9, 1), torch.ones(9, 9).tril().bool())
    assert attention_mask(9, 0, 1, None, torch.device("cpu")) is None  # the kernels' own causal mask


def test_padding_is_never_seen_and_the_start_block_always() -> None:
    visible = torch.tensor([[1, 1, 0, 0, 0, 1, 1, 1], [1] * 8], dtype=torch.bool)
    mask = attention_mask(8, 0, 2, visible, torch.device("cpu"))
    for row in range(2):
        for i in range(8):
            for j in range(8):
                assert bool(mask[row, 0, i, j]) == (j // 2 <= i // 2 and bool(visible[row, j]))
    assert mask[..., :2].all()


def test_with_a_cache_the_newest_block_sees_all_that_is_visible() -> None:
    visible = torch.tensor([[1, 1, 0, 1, 1, 1], [1] * 6], dtype=torch.bool)
    whole = attention_mask(6, 0, 2, visible, torch.device("cpu"))
    newest = attention_mask(2, 4, 2, visible, torch.device("cpu"))
    assert torch.equal(newest.expand(2, 1, 2, 6), whole[:, :, 4:])
    assert attention_mask(2, 4, 2, None, torch.device("cpu")) is None


def test_positions_skip_whole_blocks_of_padding_only() -> None:
    visible = torch.tensor([[1, 1, 1, 0, 0, 0, 0, 1, 1, 1, 1, 1], [1] * 3 + [0] * 6 + [1] * 3, [1] * 12]).bool()
    got = positions(visible, 3)
    assert got[0, :3].tolist() == [0, 1, 2]
    assert got[0, 7:].tolist() == [4, 5, 6, 7, 8]  # one block and one slot of padding: the block is not counted
    assert got[1, 9:].tolist() == [3, 4, 5]
    assert got[2].tolist() == list(range(12))


def test_scaled_initialization_follows_width_and_depth() -> None:
    torch.manual_seed(0)
    config = BitLMConfig(
        vocab_size=1000,
        embedding_rows=1000,
        num_bits=10,
        hidden_size=256,
        num_hidden_layers=2,
        intermediate_size=768,
        num_attention_heads=8,
        num_key_value_heads=8,
        head_dim=32,
        initialization="scaled",
    )
    model = BitLMForCausalLM(config)
    expected = {"embed_tokens": 1 / 16, "q_proj": 1 / math.sqrt(3 * 256), "o_proj": 1 / math.sqrt(3 * 256 * 4)}
    expected |= {"gate_proj": 1 / math.sqrt(3 * 256), "down_proj": 1 / math.sqrt(3 * 768 * 4)}
    for name, weight in model.model.named_parameters():
        std = expected.get(name.split(".")[-2])
        if std is not None:
            assert weight.std().item() == pytest.approx(std, rel=0.02), name
    assert model.start_block.std().item() == pytest.approx(1 / 16, rel=0.1)
    tokens = torch.randint(1000, (4, 32))
    logits = model.model(tokens).last_hidden_state @ model.model.embed_tokens.weight.T
    assert logits.var().item() == pytest.approx(1, rel=0.2)


def test_scaled_initialization_leaves_loaded_weights_alone(tmp_path: Path) -> None:
    config = BitLMConfig(initialization="scaled")
    made = BitLMForCausalLM(config)
    made.save_pretrained(tmp_path)
    loaded = BitLMForCausalLM.load(tmp_path)
    for name, weight in made.state_dict().items():
        assert torch.equal(weight, loaded.state_dict()[name]), name
