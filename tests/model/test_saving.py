"""Checkpoints: a round trip changes no bit, and a set of tensors that does not fit is refused by name."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from bitlm.config import configure
from bitlm.errors import ArtifactError, ConfigError
from bitlm.model import BitLMConfig, BitLMForCausalLM
from bitlm.model.config import Vocabulary

Build = Callable[..., BitLMForCausalLM]
CODEBOOK = {
    "denoiser": "codebook",
    "context_path": "direct",
    "codebook_rank": 5,
    "slot_embedding": True,
}
VARIANTS = [{}, CODEBOOK, {"head": "lm"}, {"head": "lm", "tie_word_embeddings": False}]


@pytest.mark.parametrize("options", VARIANTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_round_trip_is_bit_identical(build: Build, tmp_path: Path, options: dict, dtype: torch.dtype) -> None:
    model = build(**options)
    if model.config.has_codebook:
        model.set_unigram(torch.arange(50))
    model = model.to(dtype)
    model.save_pretrained(tmp_path)
    for loaded in (BitLMForCausalLM.load(tmp_path), AutoModelForCausalLM.from_pretrained(tmp_path)):
        assert loaded.config.to_dict() == model.config.to_dict() | {"_name_or_path": loaded.config._name_or_path}
        before, after = model.state_dict(), loaded.state_dict()
        assert before.keys() == after.keys()
        for name, tensor in before.items():
            assert after[name].dtype == dtype
            assert torch.equal(tensor, after[name]), name
        # A model that was cast has rounded rotary frequencies, which are not stored; a loaded one has exact ones.
        model.model.rotary_emb = loaded.model.rotary_emb
        settings = {"max_new_tokens": 6, "num_steps": 2}
        assert loaded.generate([[1, 2, 3]], **settings).ids == model.generate([[1, 2, 3]], **settings).ids


@pytest.mark.parametrize("options", VARIANTS)
def test_a_tensor_that_does_not_fit_is_named(build: Build, tmp_path: Path, options: dict) -> None:
    model = build(**options)
    model.save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    good = load_file(file)
    assert good.keys() == model.state_dict().keys()
    for name in [name for name in good if ".layers.1." not in name][::2]:
        save_file({k: v for k, v in good.items() if k != name}, file, metadata={"format": "pt"})
        with pytest.raises(ArtifactError, match=f"tensor {name} is missing"):
            BitLMForCausalLM.load(tmp_path)
        save_file(good | {name: torch.zeros(3, 2)}, file, metadata={"format": "pt"})
        with pytest.raises(ArtifactError, match=rf"tensor {name} has shape \(3, 2\), the model needs"):
            BitLMForCausalLM.load(tmp_path)
    save_file(good | {"head.extra": torch.zeros(2)}, file, metadata={"format": "pt"})
    for load in (BitLMForCausalLM.load, AutoModelForCausalLM.from_pretrained):
        with pytest.raises(ArtifactError, match=r"tensor head\.extra has no place"):
            load(tmp_path)


def test_a_missing_or_damaged_checkpoint_is_refused(build: Build, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="no readable model"):
        BitLMForCausalLM.load(tmp_path / "nothing")
    build().save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(ArtifactError, match=str(tmp_path)):
        BitLMForCausalLM.load(tmp_path)
    file.unlink()
    with pytest.raises(ArtifactError, match=str(tmp_path)):
        BitLMForCausalLM.load(tmp_path)


def test_config_comes_from_the_pipelines_sections(tmp_path: Path) -> None:
    pipeline = configure("tiny-article", ["model.head.denoiser=matched_filter"])
    for head, m in (("diffusion", 4), ("lm", 1)):
        config = BitLMConfig.from_sections(pipeline.model, head, Vocabulary(2000, 12, end_id=3, pad_id=4))
        config.save_pretrained(tmp_path)
        config = BitLMConfig.from_pretrained(tmp_path)
        assert (config.block_size, config.vocab_size, config.embedding_rows, config.num_bits) == (m, 2000, 2048, 12)
        assert (config.hidden_size, config.intermediate_size) == (192, 512)
        assert config.diffusion_head == pipeline.model.head.model_copy(update={"width": 192})
        assert (config.end_token_id, config.pad_token_id) == (3, 4)
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == "bitlm"


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"num_bits": 7}, "256 ids need 8 to 32 bits"),
        ({"embedding_rows": 128}, "embedding_rows = 128"),
        ({"head": "lm"}, "block_size = 4"),
        ({"diffusion_head": {"head_dim": 24}}, "diffusion_head.head_dim = 24 does not divide the head's width 64"),
        ({"diffusion_head": {"layers": 3}}, "diffusion_head.layers = 3: Extra inputs are not permitted"),
        ({"end_token_id": 256}, "end_token_id = 256"),
        (
            {"diffusion_head": {"head_dim": 16, "codebook_rank": 8}},
            "codebook_rank = 8 needs",
        ),
        ({"diffusion_head": {"head_dim": 16, "denoiser": "codebook", "codebook_rank": 65}}, "hidden_size = 64"),
    ],
)
def test_impossible_configurations_are_refused(values: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        BitLMConfig(**values)
