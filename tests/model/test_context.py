"""What the backbone tells the head: no future, all of the block's own past, and Qwen3 itself for m = 1."""

from collections.abc import Callable

import pytest
import torch
from transformers import Qwen3Config, Qwen3ForCausalLM
from transformers.models.qwen3.modeling_qwen3 import Qwen3RotaryEmbedding

from bitlm.config import PRESETS
from bitlm.errors import ConfigError
from bitlm.model import BitLMConfig, BitLMForCausalLM
from bitlm.model.config import Vocabulary

Build = Callable[..., BitLMForCausalLM]
SCALES = ("0.6b", "1.7b", "4b", "8b")


def tokens(b: int, L: int, V: int = 50) -> torch.Tensor:
    return torch.randint(0, V, (b, L), generator=torch.Generator().manual_seed(L))


@pytest.mark.parametrize("m", [1, 2, 4])
def test_changing_a_token_changes_the_contexts_behind_its_block_and_no_other(build: Build, m: int) -> None:
    model = build(block_size=m)
    ids = tokens(2, 16)
    before = model.compute_context(ids)
    for position in range(16 - m):
        changed = ids.clone()
        changed[:, position] = (changed[:, position] + 1) % 50
        after = model.compute_context(changed)
        block = position // m
        assert torch.equal(before[:, : block + 1], after[:, : block + 1])  # entry n knows blocks before n
        differs = (before != after).any(-1)[:, block + 1 :]
        assert differs.all()  # every slot of its own block, and all later ones


def test_the_last_block_is_not_fed(build: Build) -> None:
    model = build()
    ids = tokens(1, 8)
    changed = ids.clone()
    changed[:, 4:] = 0
    assert torch.equal(model.compute_context(ids), model.compute_context(changed))


@pytest.mark.parametrize("m", [1, 4])
@pytest.mark.parametrize("length", [4, 5, 6, 7, 9])
def test_padding_changes_no_context(build: Build, length: int, m: int) -> None:
    """Entries for the blocks behind the first block of the prompt, whatever stands on its left."""
    model = build(block_size=m)
    prompt = tokens(1, length)
    aligned, blocks = -(-length // 4) * 4, -(-length // m)
    contexts = []
    for total in (aligned, aligned + 4, aligned + 12):
        padded, mask = torch.zeros(2, 1, total + m, dtype=torch.long)  # one block more, which is never fed
        padded[:, total - length : total] = prompt
        mask[:, total - length :] = 1
        contexts.append(model.compute_context(padded, mask)[:, -blocks:])
    for other in contexts[1:]:
        torch.testing.assert_close(contexts[0], other, rtol=0, atol=1e-5)


def test_a_full_attention_mask_is_no_mask(build: Build) -> None:
    model = build()
    ids = tokens(2, 12)
    torch.testing.assert_close(
        model.compute_context(ids), model.compute_context(ids, torch.ones_like(ids)), rtol=0, atol=1e-6
    )


def test_a_broken_block_is_an_error(build: Build) -> None:
    with pytest.raises(ConfigError, match="10 tokens is not a whole number of blocks of 4"):
        build().compute_context(tokens(1, 10))


def qwen3(scale: str, layers: int, rows: int) -> Qwen3ForCausalLM:
    model = PRESETS[scale]().model
    config = Qwen3Config(
        vocab_size=rows,
        hidden_size=model.hidden_size,
        intermediate_size=model.ffn_size,
        num_hidden_layers=layers,
        num_attention_heads=model.num_heads,
        num_key_value_heads=model.num_kv_heads,
        head_dim=model.head_dim,
        rope_parameters={"rope_type": "default", "rope_theta": 1_000_000},
        rms_norm_eps=1e-6,
        tie_word_embeddings=model.tie_embeddings,
    )
    with torch.device("meta"):
        return Qwen3ForCausalLM(config)


@pytest.mark.parametrize("scale", SCALES)
def test_blocks_of_one_are_qwen3(scale: str) -> None:
    """Same weights, same vectors in: transformers' own causal model gives the same logits."""
    model_section = PRESETS[scale]().model.model_copy(update={"num_layers": 1})
    vocabulary = Vocabulary(vocab_size=200, num_bits=18, end_id=0, pad_id=0)
    ours = BitLMForCausalLM(BitLMConfig.from_sections(model_section, "lm", vocabulary))
    assert ours.config.embedding_rows == 256
    state = dict(ours.state_dict())
    start = state.pop("start_block")
    embedding = state["model.embed_tokens.weight"]
    state["lm_head.weight"] = state.pop("head.output.weight", embedding)
    theirs = qwen3(scale, layers=1, rows=256)
    theirs.load_state_dict(state, assign=True)
    theirs.model.rotary_emb = Qwen3RotaryEmbedding(theirs.config)
    ids = tokens(2, 12, 200)
    with torch.no_grad():
        vectors = torch.cat([start.expand(2, 1, -1), embedding[ids[:, :-1]]], dim=1)
        expected = theirs(inputs_embeds=vectors).logits[..., :200]
        got = ours.head(ours.compute_context(ids)[:, :, 0], embedding)
    assert expected.abs().max() > 0.1
    assert (got - expected).abs().max() <= 1e-5


@pytest.mark.parametrize(
    ("scale", "published", "without_embeddings"),
    [
        ("0.6b", 596_049_920, 0.44),
        ("1.7b", 1_720_574_976, 1.4),
        ("4b", 4_022_468_096, 3.6),
        ("8b", 8_190_735_360, 6.95),
    ],
)
def test_parameter_counts_are_those_of_qwen3(scale: str, published: int, without_embeddings: float) -> None:
    section = PRESETS[scale]().model
    vocabulary = Vocabulary(vocab_size=151_669, num_bits=18, end_id=151_643, pad_id=151_643)
    config = BitLMConfig.from_sections(section, "lm", vocabulary)
    assert config.embedding_rows == 151_936
    with torch.device("meta"):
        model = BitLMForCausalLM(config)
    count = sum(parameter.numel() for parameter in model.parameters())
    assert count - model.start_block.numel() == published
    matrices = 1 if section.tie_embeddings else 2
    assert (published - matrices * 151_936 * section.hidden_size) / 1e9 == pytest.approx(without_embeddings, rel=0.012)


def test_the_slot_embedding_tells_each_place_in_a_block_from_the_others(build: Build) -> None:
    model, plain = build(slot_embedding=True), build()
    ids = tokens(2, 12)
    torch.testing.assert_close(plain.embed(ids), plain.model.embed_tokens(ids), rtol=0, atol=0)
    added = model.embed(ids) - model.model.embed_tokens(ids)
    for position in range(12):
        expected = model.slot_embedding[position % 4].expand(2, -1)
        torch.testing.assert_close(added[:, position], expected, rtol=0, atol=1e-6)
    before = model.compute_context(ids)
    with torch.no_grad():
        model.slot_embedding[2] += 1
    assert torch.equal(before[:, 0], model.compute_context(ids)[:, 0])  # the start block has vectors of its own
    assert ((before != model.compute_context(ids)).any(-1)[:, 1:]).all()
