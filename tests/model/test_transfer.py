"""Start weights: a real Qwen3 checkpoint and our own models of both heads, taken over exactly or refused by name."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import Qwen3Config, Qwen3ForCausalLM

from bitlm.errors import ConfigError, SourceError
from bitlm.model import BitLMForCausalLM
from bitlm.model.transfer import take_backbone

Build = Callable[..., BitLMForCausalLM]
# The shapes of ``conftest.SMALL``.
QWEN3 = {
    "vocab_size": 128,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "intermediate_size": 48,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": True,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e6},
}


def qwen3(folder: Path, **changes) -> Qwen3ForCausalLM:
    torch.manual_seed(3)
    model = Qwen3ForCausalLM(Qwen3Config(**QWEN3 | changes)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape))
    model.save_pretrained(folder, max_shard_size="40KB")
    return model


def snapshot(model: BitLMForCausalLM) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def changed(model: BitLMForCausalLM, before: dict[str, torch.Tensor]) -> set[str]:
    return {name for name, parameter in model.named_parameters() if not torch.equal(parameter, before[name])}


@pytest.mark.parametrize("head", ["diffusion", "lm"])
def test_a_qwen3_folder_gives_its_hidden_states(build: Build, tmp_path: Path, head: str) -> None:
    theirs = qwen3(tmp_path)
    assert (tmp_path / "model.safetensors.index.json").exists()  # in several files, as large models are
    ours = build(head=head, block_size=1)
    before = snapshot(ours)
    take_backbone(ours, tmp_path, "there")
    assert changed(ours, before) == {name for name in before if name.startswith("model.")}
    ids = torch.randint(0, 50, (2, 9), generator=torch.Generator().manual_seed(0))
    vectors = torch.cat([ours.start_block.expand(2, 1, -1), theirs.model.embed_tokens(ids[:, :-1])], dim=1)
    expected = theirs.model(inputs_embeds=vectors).last_hidden_state
    assert (ours.compute_context(ids)[:, :, 0] - expected).abs().max() <= 1e-5


@pytest.mark.parametrize("head", ["diffusion", "lm"])
def test_the_output_matrix_belongs_to_the_lm_head_only(build: Build, tmp_path: Path, head: str) -> None:
    theirs = qwen3(tmp_path, tie_word_embeddings=False)
    ours = build(head=head, tie_word_embeddings=False)
    before = snapshot(ours)
    take_backbone(ours, tmp_path, "there")
    if head == "lm":
        assert torch.equal(ours.head.output.weight, theirs.lm_head.weight)
        with pytest.raises(ConfigError, match=r"lm_head\.weight of there has no place.*tie_embeddings=false"):
            take_backbone(build(head="lm"), tmp_path, "there")
    else:
        assert not {name for name in changed(ours, before) if name.startswith("head.")}


@pytest.mark.parametrize("source", ["lm", "diffusion"])
@pytest.mark.parametrize("target", ["lm", "diffusion"])
@pytest.mark.parametrize("tied", [True, False])
def test_our_own_models_of_either_head(build: Build, tmp_path: Path, source: str, target: str, tied: bool) -> None:
    theirs = build(seed=1, head=source, tie_word_embeddings=tied)
    theirs.save_pretrained(tmp_path)
    ours = build(head=target, tie_word_embeddings=tied)
    before = snapshot(ours)
    take_backbone(ours, tmp_path, "there")
    taken = {name for name in before if name.startswith("model.")}
    if (source, target) != ("diffusion", "lm"):
        taken.add("start_block")
    if source == target == "lm" and not tied:
        taken.add("head.output.weight")
    assert changed(ours, before) == taken
    stored = theirs.state_dict()
    for name in taken:
        expected = stored[name].expand(len(ours.state_dict()[name]), *stored[name].shape[1:])
        assert torch.equal(ours.state_dict()[name], expected), name


def test_a_slot_embedding_is_taken_over_where_blocks_are_as_long(build: Build, tmp_path: Path) -> None:
    theirs = build(seed=1, slot_embedding=True)
    theirs.save_pretrained(tmp_path)
    same, shorter = build(slot_embedding=True), build(slot_embedding=True, block_size=2)
    before = snapshot(shorter)
    for model in (same, shorter):
        take_backbone(model, tmp_path, "there")
    assert torch.equal(same.slot_embedding, theirs.slot_embedding)
    assert torch.equal(shorter.slot_embedding, before["slot_embedding"])
    assert torch.equal(shorter.start_block, before["start_block"])


@pytest.mark.parametrize("source", [{}, {"denoiser": "codebook"}, {"head": "lm"}])
@pytest.mark.parametrize("target", [{}, {"denoiser": "codebook"}, {"head": "lm"}])
def test_a_map_of_codes_is_taken_over_and_a_table_where_both_have_one(
    build: Build, tmp_path: Path, source: dict, target: dict
) -> None:
    theirs, ours = build(seed=1, input="codes", **source), build(input="codes", **target)
    theirs.save_pretrained(tmp_path)
    before = snapshot(ours)
    take_backbone(ours, tmp_path, "there")
    taken = {name for name in before if name.startswith(("model.layers", "model.norm", "code_input"))}
    if source and target:
        taken.add("model.embed_tokens.weight")
    if "head" in source or "head" not in target:
        taken.add("start_block")
    assert changed(ours, before) == taken
    for name in taken - {"start_block"}:
        assert torch.equal(ours.state_dict()[name], theirs.state_dict()[name]), name


def test_a_map_of_codes_starts_fresh_behind_a_table_and_is_never_left_behind(build: Build, tmp_path: Path) -> None:
    build(seed=1).save_pretrained(tmp_path / "table")
    build(seed=1, input="codes").save_pretrained(tmp_path / "codes")
    ours = build(input="codes")
    before = snapshot(ours)
    take_backbone(ours, tmp_path / "table", "there")
    taken = {name for name in before if name.startswith(("model.layers", "model.norm", "start_block"))}
    assert changed(ours, before) == taken
    ours = build()
    before = snapshot(ours)
    with pytest.raises(ConfigError, match=r"there is fed with codes, this model's with embedding rows: .*input=codes"):
        take_backbone(ours, tmp_path / "codes", "there")
    with pytest.raises(ConfigError, match=r"code_input\.hidden\.weight of there has shape \(32, 6\), .* \(32, 7\)"):
        take_backbone(build(input="codes", num_bits=7), tmp_path / "codes", "there")
    assert not changed(ours, before)


def test_other_precisions_are_converted(build: Build, tmp_path: Path) -> None:
    build(seed=1).to(torch.bfloat16).save_pretrained(tmp_path)
    ours = build()
    take_backbone(ours, tmp_path, "there")
    assert {parameter.dtype for parameter in ours.parameters()} == {torch.float32}
    stored = load_file(tmp_path / "model.safetensors")["model.norm.weight"]
    assert torch.equal(ours.model.norm.weight, stored.float())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"vocab_size": 256},
            r"tensor model\.embed_tokens\.weight of there has shape \(256, 32\), .* needs \(128, 32\)",
        ),
        ({"intermediate_size": 64}, r"mlp\.gate_proj\.weight of there has shape \(64, 32\), .* needs \(48, 32\)"),
        (
            {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16},
            r"q_norm\.weight of there has shape \(16,\), .* needs \(8,\)",
        ),
        ({"num_hidden_layers": 3}, r"tensor model\.layers\.2\.\S+ of there has no place in this model"),
        ({"num_hidden_layers": 1}, r"there has no tensor model\.layers\.1\."),
        ({"attention_bias": True}, r"tensor model\.layers\.0\.self_attn\.\w+\.bias of there has no place"),
        ({"rms_norm_eps": 1e-5}, r"there has rms_norm_eps = 1e-05, this model 1e-06"),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 1e4}}, r"there has rope_parameters = .*10000"),
    ],
)
def test_what_does_not_fit_is_named_and_nothing_taken(
    build: Build, tmp_path: Path, changes: dict, message: str
) -> None:
    qwen3(tmp_path, **changes)
    ours = build()
    before = snapshot(ours)
    with pytest.raises(ConfigError, match=message):
        take_backbone(ours, tmp_path, "there")
    assert not changed(ours, before)


def test_only_readable_safetensors_of_a_known_model_are_read(build: Build, tmp_path: Path) -> None:
    ours = build()
    ours.save_pretrained(tmp_path)
    weights, config = tmp_path / "model.safetensors", tmp_path / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"model_type": "llama"}))
    with pytest.raises(ConfigError, match="there is a llama model; expected qwen3 or bitlm"):
        take_backbone(ours, tmp_path, "there")
    good = load_file(weights)
    weights.write_bytes(weights.read_bytes()[:-10])
    with pytest.raises(SourceError, match=r"model\.safetensors of there cannot be read"):
        take_backbone(ours, tmp_path, "there")
    weights.unlink()
    torch.save(good, tmp_path / "pytorch_model.bin")
    with pytest.raises(SourceError, match=r"model\.safetensors is missing; expected .* safetensors"):
        take_backbone(ours, tmp_path, "there")
    save_file(good, weights, metadata={"format": "pt"})
    config.unlink()
    with pytest.raises(SourceError, match=r"config\.json is missing"):
        take_backbone(ours, tmp_path, "there")
