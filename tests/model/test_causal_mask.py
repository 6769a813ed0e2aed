"""The backbone with a causal mask inside the block too: Qwen3 itself, over the start block and the tokens."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from transformers import Qwen3Config, Qwen3Model

from bitlm.generation.cache import CachedContext
from bitlm.model import BitLMForCausalLM
from bitlm.model.backbone import attention_mask

Build = Callable[..., BitLMForCausalLM]
M = 4


def tokens(b: int, L: int) -> Tensor:
    return torch.randint(0, 50, (b, L), generator=torch.Generator().manual_seed(L))


@torch.no_grad()
def test_contexts_are_the_states_of_transformers_own_causal_model(build: Build) -> None:
    model = build(mask="causal")
    config = model.config
    theirs = Qwen3Model(
        Qwen3Config(
            vocab_size=config.embedding_rows,
            hidden_size=config.hidden_size,
            intermediate_size=config.intermediate_size,
            num_hidden_layers=config.num_hidden_layers,
            num_attention_heads=config.num_attention_heads,
            num_key_value_heads=config.num_key_value_heads,
            head_dim=config.head_dim,
            rope_parameters={"rope_type": "default", "rope_theta": config.rope_theta},
            rms_norm_eps=config.rms_norm_eps,
        )
    ).eval()
    theirs.load_state_dict(model.model.state_dict())
    ids = tokens(3, 16)
    vectors = torch.cat([model.start_block.expand(3, -1, -1), theirs.embed_tokens(ids[:, :12])], dim=1)
    expected = theirs(inputs_embeds=vectors).last_hidden_state
    got = model.compute_context(ids)
    torch.testing.assert_close(got.flatten(1, 2), expected, rtol=0, atol=1e-5)
    assert not torch.allclose(build(mask="block").compute_context(ids).flatten(1, 2), expected, atol=0.1)


@torch.no_grad()
def test_changing_a_token_changes_its_own_state_and_those_behind_it_and_no_other(build: Build) -> None:
    model = build(mask="causal")
    ids = tokens(2, 16)
    before = model.compute_context(ids).flatten(1, 2)
    for position in range(12):
        changed = ids.clone()
        changed[:, position] = (changed[:, position] + 1) % 50
        after = model.compute_context(changed).flatten(1, 2)
        place = M + position  # behind the start block
        assert torch.equal(before[:, :place], after[:, :place])
        assert (before != after).any(-1)[:, place:].all()


def test_the_masks_of_a_pass_and_of_a_cache_are_the_definition() -> None:
    visible = torch.tensor([[1, 1, 0, 1, 1, 1, 1, 1], [1] * 8], dtype=torch.bool)
    device = torch.device("cpu")
    whole = attention_mask(8, 0, 1, visible, device)
    for row in range(2):
        for i in range(8):
            for j in range(8):
                assert bool(whole[row, 0, i, j]) == (j <= i and bool(visible[row, j]))
    assert torch.equal(attention_mask(4, 4, 1, visible, device), whole[:, :, 4:])
    assert torch.equal(attention_mask(4, 4, 1, None, device), whole[1:, :, 4:])


@pytest.mark.parametrize("lengths", [[4, 8], [3, 9, 1], [6]])
@torch.no_grad()
def test_states_from_the_cache_are_those_of_a_full_pass(build: Build, lengths: list[int]) -> None:
    """Of prompts padded on the left, block after block."""
    model = build(mask="causal", slot_embedding=True)
    rows = tokens(len(lengths), 24).tolist()
    cached = CachedContext(model, [row[:length] for row, length in zip(rows, lengths, strict=True)])
    for step in range(3):
        for row, length in enumerate(lengths):
            known = rows[row][: length + M * step]
            padding = -length % M
            ids = torch.tensor([[0] * padding + known + [0] * M])  # the last block is not fed
            mask = torch.tensor([[0] * padding + [1] * (len(known) + M)])
            expected = model.compute_context(ids, mask)[:, -1]
            torch.testing.assert_close(cached.context[row : row + 1], expected, rtol=0, atol=2e-6)
        new = [row[length + M * step :][:M] for row, length in zip(rows, lengths, strict=True)]
        cached.advance(torch.tensor(new), list(range(len(lengths))))
