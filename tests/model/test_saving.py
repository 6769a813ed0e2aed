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
CODES = {"input": "codes"}
VARIANTS = [{}, CODEBOOK, CODES, {"head": "lm"}, {"head": "lm", "tie_word_embeddings": False}]


@pytest.mark.parametrize("options", VARIANTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
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
            assert after[name].dtype == (torch.float32 if name.endswith("log_unigram") else dtype)
            assert torch.equal(tensor, after[name]), name
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


def test_only_safetensors_are_read(build: Build, tmp_path: Path) -> None:
    model = build()
    model.config.save_pretrained(tmp_path)
    file = tmp_path / "pytorch_model.bin"
    torch.save(model.state_dict(), file)
    opened = file.stat().st_atime_ns
    for load in (BitLMForCausalLM.load, AutoModelForCausalLM.from_pretrained):
        with pytest.raises((ArtifactError, OSError), match=r"no file named model\.safetensors"):
            load(tmp_path)
    assert file.stat().st_atime_ns == opened


@pytest.mark.parametrize("content", ["", "{", "[1]", "null", '"bitlm"', b"\xff\xfe"])
def test_a_config_that_is_no_object_is_named(tmp_path: Path, content: str | bytes) -> None:
    file = tmp_path / "config.json"
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ArtifactError, match=f"{file}: (no valid JSON|it holds a)") as caught:
        BitLMForCausalLM.load(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "qwen3"}, "model_type = 'qwen3': expected 'bitlm'"),
        ({"model_type": None}, "model_type = None: expected 'bitlm'"),
        ({"rope_theta": None}, "rope_theta = None: Input should be a valid number"),
        ({"hidden_size": "32"}, "hidden_size = '32': Input should be a valid integer"),
        ({"vocab_size": 50.5}, "vocab_size = 50.5"),
        ({"head": "banana"}, "head = 'banana': Input should be 'diffusion' or 'lm'"),
        ({"tie_word_embeddings": "yes"}, "tie_word_embeddings = 'yes'"),
        ({"block_size": 0}, "block_size = 0: Input should be greater than or equal to 1"),
        ({"num_attention_heads": 3}, "num_attention_heads = 3 is no multiple of num_key_value_heads = 2"),
        ({"head_dim": 7}, "head_dim = 7: rotary positions need an even number"),
        ({"diffusion_head": 3}, "diffusion_head = 3"),
        ({"end_token_id": [1, 2]}, r"end_token_id = \[1, 2\]"),
        ({"blok_size": 4}, "blok_size is unknown; the nearest valid one is block_size"),
        ({"rope_scaling": {"type": "linear", "factor": 2}}, "rope_scaling is unknown"),
        ({"transformers_weights": "pytorch_model.bin"}, "transformers_weights is unknown"),
        ({"quantization_config": {"bits": 4}}, "quantization_config: a quantized model is not supported"),
        ({"dtype": "int8"}, "dtype = 'int8': choose float32"),
        ({"id2label": "x"}, "Transformers cannot read it"),
        ({"_attn_implementation": "flash_attention_2"}, "attn_implementation = 'flash_attention_2'"),
    ],
)
def test_a_config_that_describes_no_model_is_refused(build: Build, tmp_path: Path, changes: dict, message: str) -> None:
    build().save_pretrained(tmp_path)
    file = tmp_path / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    for load in (BitLMForCausalLM.load, BitLMForCausalLM.from_pretrained):
        with pytest.raises(ConfigError, match=message) as caught:
            load(tmp_path)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("options", [{}, {"head": "lm"}])
def test_a_field_that_is_missing_is_named(build: Build, tmp_path: Path, options: dict) -> None:
    """Its default could describe another model with tensors of the same shapes."""
    build(**options).save_pretrained(tmp_path)
    file = tmp_path / "config.json"
    stored = json.loads(file.read_text())
    own = stored.keys() - {"architectures", "dtype", "transformers_version", "initialization", "initializer_range"}
    assert "rope_theta" in own
    for name in own:
        file.write_text(json.dumps({key: value for key, value in stored.items() if key != name}))
        expected = "model_type = None" if name == "model_type" else f"{name} is missing"
        with pytest.raises(ConfigError, match=f"{file}: {expected}"):
            BitLMForCausalLM.load(tmp_path)
    if not options:
        del stored["diffusion_head"]["denoiser"]
        file.write_text(json.dumps(stored))
        with pytest.raises(ConfigError, match=r"diffusion_head\.denoiser is missing"):
            BitLMForCausalLM.load(tmp_path)


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ("{", "no valid JSON"),
        ("[]", "it holds a list"),
        ("{}", "weight_map is missing"),
        ('{"weight_map": 3}', "weight_map is missing or names no files"),
        ('{"weight_map": {"start_block": "../x"}}', r"'\.\./x' is not a path inside its folder"),
        ('{"weight_map": {"start_block": "gone.safetensors"}}', "no readable model there"),
        ('{"metadata": {}, "weight_map": {"start_block": "gone.safetensors"}}', "no readable model there"),
    ],
)
def test_an_index_that_names_no_files_is_refused(build: Build, tmp_path: Path, index: str, message: str) -> None:
    build().config.save_pretrained(tmp_path)
    (tmp_path / "model.safetensors.index.json").write_text(index)
    with pytest.raises(ArtifactError, match=message) as caught:
        BitLMForCausalLM.load(tmp_path)
    assert "\n" not in str(caught.value)


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
