"""Padding: a row gives what it gives alone, whatever stands under its mask; masks without a meaning are refused."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from bitlm.config import DiffusionConfig
from bitlm.diffusion.noise import BlockShape, Noise, NoiseKeys, block_noise
from bitlm.errors import ConfigError
from bitlm.generation.cache import CachedContext
from bitlm.model import BitLMForCausalLM

Build = Callable[..., BitLMForCausalLM]
HEADS = [
    {"head": "lm"},
    {"context_path": "direct", "slot_embedding": True},
    {"denoiser": "codebook"},
    {"denoiser": "codebook", "attention": "causal", "context_path": "attention", "mask": "causal"},
]
NOISE = DiffusionConfig(noise_draws=2, condition_dropout=0.4)


def tokens(b: int, L: int) -> Tensor:
    return torch.randint(0, 50, (b, L), generator=torch.Generator().manual_seed(L))


def noise_for(model: BitLMForCausalLM, b: int, N: int) -> Noise | None:
    if model.config.head == "lm":
        return None
    shape = BlockShape(N, model.config.block_size, model.config.num_bits)
    return block_noise(NoiseKeys(5, range(b), [0] * b), shape, NOISE)


def padded(ids: Tensor, left: int, right: int) -> tuple[Tensor, Tensor]:
    """Two rows with junk under the mask: one padded, one of real tokens alone."""
    length = left + ids.shape[1] + right
    both, mask = tokens(2, length), torch.ones(2, length, dtype=torch.long)
    both[0, left : left + ids.shape[1]] = ids
    mask[0, :left] = 0
    mask[0, left + ids.shape[1] :] = 0
    return both, mask


@pytest.mark.parametrize("options", HEADS)
@pytest.mark.parametrize(("left", "right"), [(4, 0), (12, 0), (0, 8), (8, 4)])
def test_whole_blocks_of_padding_change_nothing(build: Build, options: dict, left: int, right: int) -> None:
    """C, loss and gradients of a row, its first block included, against the row alone."""
    ids = tokens(1, 12)
    both, mask = padded(ids, left, right)
    found, alone = build(**options), build(**options)
    m = found.config.block_size
    real = slice(left // m, (left + 12) // m)
    torch.testing.assert_close(
        found.compute_context(both, mask)[:1, real], alone.compute_context(ids), rtol=0, atol=1e-5
    )
    noise = own = noise_for(found, 2, both.shape[1] // m)
    if noise is not None:
        own = Noise(*(part[:1, real] for part in (noise.eps, noise.t, noise.drop, noise.learn)), noise.offsets)
    expected = alone(ids, noise=own)
    expected.loss_sum.backward()
    in_row = torch.zeros_like(mask, dtype=torch.bool)
    in_row[0] = True
    output = found(both, mask, noise=noise, loss_tokens=in_row)
    output.loss_sum.backward()
    assert output.loss_count == expected.loss_count == 12
    torch.testing.assert_close(output.slot_loss[:1, real], expected.slot_loss, rtol=1e-4, atol=1e-5)
    for (name, parameter), other in zip(found.named_parameters(), alone.parameters(), strict=True):
        assert (parameter.grad - other.grad).norm() <= 1e-3 * other.grad.norm() + 1e-5, name


@pytest.mark.parametrize("options", HEADS)
@pytest.mark.parametrize("left", [1, 4, 6])
def test_ids_under_the_mask_do_not_matter(build: Build, options: dict, left: int) -> None:
    model, ids = build(**options), tokens(1, 12)
    mask = torch.ones_like(ids)
    mask[:, :left] = 0
    junk = ids.clone()
    junk[:, :left] = (ids[:, :left] + 7) % 50
    one, other = (model.compute_context(given, mask) for given in (ids, junk))
    assert torch.equal(one, other)
    assert not torch.equal(one, model.compute_context(ids))


@pytest.mark.parametrize("length", [1, 2, 3, 5, 8])
def test_generation_and_training_agree_on_a_part_of_a_block(build: Build, length: int) -> None:
    """C behind a prompt whose first block is padded in part, alone and beside a longer one."""
    model = build(slot_embedding=True)
    prompt, left = tokens(1, 9)[0, :length].tolist(), -length % 4
    ids = torch.tensor([[31] * left + prompt + [0] * 4])  # the last block is not fed
    mask = torch.ones_like(ids)
    mask[:, :left] = 0
    with torch.no_grad():
        expected = model.compute_context(ids, mask)[:, -1]
        for prompts in ([prompt], [prompt, [9] * 14]):
            found = CachedContext(model, prompts).context[:1]
            torch.testing.assert_close(found, expected, rtol=0, atol=2e-6)


def test_a_row_of_padding_alone_carries_no_loss(build: Build) -> None:
    model, ids = build(), tokens(2, 8)
    mask = torch.tensor([[0] * 8, [1] * 8])
    output = model(ids, mask, noise=noise_for(model, 2, 2))
    assert output.loss_count == 8
    assert output.in_loss[0].sum() == 0
    assert output.loss.isfinite()


@pytest.mark.parametrize("dtype", [torch.bool, torch.int32, torch.float32])
def test_a_mask_may_be_of_any_type(build: Build, dtype: torch.dtype) -> None:
    model, (ids, mask) = build(), padded(tokens(1, 8), 4, 0)
    assert torch.equal(model.compute_context(ids, mask), model.compute_context(ids, mask.to(dtype)))
    assert torch.equal(model.compute_context(ids), model.compute_context(ids.int()))


ONES = torch.ones(1, 8, dtype=torch.long)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"attention_mask": torch.tensor([[1, 1, 1, 0, 0, 1, 1, 1]])}, "row 0 has padding between its tokens"),
        ({"attention_mask": torch.tensor([[0, 1, 0, 1, 1, 1, 1, 1]])}, "row 0 has padding between its tokens"),
        ({"attention_mask": ONES[:, :7]}, r"attention_mask: int64 \[1, 7\] on cpu; expected .*\[1, 8\]"),
        ({"attention_mask": ONES[None, None]}, r"attention_mask: int64 \[1, 1, 1, 8\]"),
        ({"attention_mask": torch.where(ONES == 1, 0.0, -torch.inf) - 1}, "other values than 0, on padding, and 1"),
        ({"attention_mask": 2 * ONES}, "other values than 0, on padding, and 1"),
        ({"attention_mask": [[1] * 8]}, "attention_mask: list"),
        ({"input_ids": 50 * ONES}, r"token id 50 is outside the vocabulary \(0 to 49\)"),
        ({"input_ids": -ONES}, "token id -1 is outside"),
        ({"input_ids": ONES.float()}, r"input_ids: float32 \[1, 8\] on cpu; expected a tensor of token ids"),
        ({"input_ids": ONES[0]}, r"input_ids: int64 \[8\]"),
        ({"input_ids": [[1] * 8]}, "input_ids: list"),
        ({"input_ids": None}, "input_ids: NoneType"),
        ({"input_ids": ONES[:, :6]}, "6 tokens is not a whole number of blocks of 4: pad it on the left"),
    ],
)
def test_other_masks_and_ids_are_refused_by_name(build: Build, given: dict, message: str) -> None:
    model = build()
    for call in (model, model.compute_context):
        with pytest.raises(ConfigError, match=message):
            call(**{"input_ids": ONES} | given)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"labels": ONES.roll(-1) + 1}, "labels: 2 in row 0 at place 0, where input_ids has 1"),
        ({"labels": ONES[:, 1:]}, r"labels: int64 \[1, 7\]"),
        ({"loss_tokens": ONES[:, :4]}, r"loss_tokens: int64 \[1, 4\]"),
        ({"inputs_embeds": torch.zeros(1, 8, 32), "input_ids": None}, "inputs_embeds is not supported: .*input_ids"),
        ({"position_ids": ONES}, "position_ids is not supported"),
        ({"past_key_values": object()}, "past_key_values is not supported"),
        ({"use_cache": True}, "use_cache is not supported"),
        ({"output_hidden_states": True}, "compute_context returns"),
        ({"output_attentions": True}, "output_attentions is not supported"),
        ({"return_dict": False}, "return_dict is not supported: the result is a BitLMOutput"),
        ({"num_items_in_batch": 8}, "loss_sum and loss_count"),
        ({"atention_mask": ONES}, "atention_mask is not supported: it takes input_ids, attention_mask"),
    ],
)
def test_what_forward_would_ignore_is_refused(build: Build, given: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build()(**{"input_ids": ONES} | given)


def test_arguments_that_ask_for_nothing_are_accepted(build: Build) -> None:
    """Wrappers such as PEFT's pass them all."""
    model = build(head="lm")
    plain = model(ONES)
    nothing = {"inputs_embeds": None, "output_attentions": None, "output_hidden_states": False, "use_cache": False}
    assert model(ONES, **nothing, return_dict=True).loss == plain.loss
