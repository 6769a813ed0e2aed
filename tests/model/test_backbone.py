"""Mask and positions against their definitions."""

import pytest
import torch

from bitlm.model.backbone import block_causal_mask, positions, training_mask


@pytest.mark.parametrize("m", [1, 2, 3, 4, 8])
@pytest.mark.parametrize("length", [1, 4, 7, 24])
def test_mask_is_the_definition(length: int, m: int) -> None:
    mask = block_causal_mask(length, m)
    for i in range(length):
        for j in range(length):
            assert bool(mask[i, j]) == (j // m <= i // m)


def test_blocks_of_one_are_causal() -> None:
    assert torch.equal(block_causal_mask(9, 1), torch.ones(9, 9).tril().bool())
    assert training_mask(9, 1, None, torch.device("cpu")) is None  # the kernels' own causal mask


def test_padding_is_never_seen_and_the_start_block_always() -> None:
    visible = torch.tensor([[1, 1, 0, 0, 0, 1, 1, 1], [1] * 8], dtype=torch.bool)
    mask = training_mask(8, 2, visible, torch.device("cpu"))
    for row in range(2):
        for i in range(8):
            for j in range(8):
                assert bool(mask[row, 0, i, j]) == (j // 2 <= i // 2 and bool(visible[row, j]))
    assert mask[..., :2].all()


def test_positions_skip_whole_blocks_of_padding_only() -> None:
    visible = torch.tensor([[1, 1, 1, 0, 0, 0, 0, 1, 1, 1, 1, 1], [1] * 3 + [0] * 6 + [1] * 3, [1] * 12]).bool()
    got = positions(visible, 3)
    assert got[0, :3].tolist() == [0, 1, 2]
    assert got[0, 7:].tolist() == [4, 5, 6, 7, 8]  # one block and one slot of padding: the block is not counted
    assert got[1, 9:].tolist() == [3, 4, 5]
    assert got[2].tolist() == list(range(12))
