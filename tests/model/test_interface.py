"""What Transformers offers on every model: the same numbers as the plain model, or a refusal that names it."""

import copy
import pickle
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import AutoModel, AutoModelForCausalLM

from bitlm.config import DiffusionConfig
from bitlm.diffusion.noise import BlockShape, NoiseKeys, block_noise
from bitlm.errors import ConfigError
from bitlm.model import BitLMConfig, BitLMForCausalLM

Build = Callable[..., BitLMForCausalLM]
IDS = torch.randint(0, 50, (2, 16), generator=torch.Generator().manual_seed(3))
LEFT = torch.tensor([[0] * 6 + [1] * 10, [1] * 16])
NOISE = block_noise(NoiseKeys(1, range(2), [0] * 2), BlockShape(4, 4, 6), DiffusionConfig())
PROMPTS = [[1, 2, 3], [4, 5, 6, 7, 8, 9], [10]]
SETTINGS = {"max_new_tokens": 9, "num_steps": 3, "guidance_scale": 2.0}
CODEBOOK = {"denoiser": "codebook", "codebook_rank": 5, "slot_embedding": True}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from small_models import small_model

    path = tmp_path_factory.mktemp("model")
    small_model(**CODEBOOK).save_pretrained(path)
    return path


def outcome(model: BitLMForCausalLM) -> tuple[torch.Tensor, torch.Tensor, list[list[int]]]:
    """C, loss and generated tokens."""
    with torch.no_grad():
        found = model.compute_context(IDS, LEFT), model(IDS, LEFT, noise=NOISE).loss
    return *found, model.generate(PROMPTS, **SETTINGS).ids


def assert_same(model: BitLMForCausalLM, plain: BitLMForCausalLM, tolerance: float = 0.0) -> None:
    (context, loss, ids), (plain_context, plain_loss, plain_ids) = outcome(model), outcome(plain)
    torch.testing.assert_close(context, plain_context, rtol=0, atol=tolerance)
    torch.testing.assert_close(loss, plain_loss, rtol=tolerance, atol=tolerance)
    assert ids == plain_ids


@pytest.mark.parametrize("options", [{"head": "lm"}, {}, {"denoiser": "codebook", "slot_embedding": True}])
def test_eager_attention_is_the_same(build: Build, options: dict) -> None:
    """C and loss with and without padding, gradients, and generation, whose blocks see the cache."""
    plain, eager = build(**options), build(**options)
    eager.set_attn_implementation("eager")
    noise = None if plain.config.head == "lm" else NOISE
    for mask in (None, LEFT):
        torch.testing.assert_close(
            eager.compute_context(IDS, mask), plain.compute_context(IDS, mask), rtol=0, atol=1e-5
        )
        losses = [model(IDS, mask, noise=noise).loss for model in (eager, plain)]
        torch.testing.assert_close(*losses, rtol=1e-5, atol=1e-6)
        for loss in losses:
            loss.backward()
    for one, other in zip(eager.parameters(), plain.parameters(), strict=True):
        assert (one.grad - other.grad).norm() <= 1e-3 * other.grad.norm() + 1e-5
    assert eager.generate(PROMPTS, **SETTINGS).ids == plain.generate(PROMPTS, **SETTINGS).ids


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_eager_attention_in_half_precision(build: Build, dtype: torch.dtype) -> None:
    plain, eager = build().to(dtype), build().to(dtype)
    eager.set_attn_implementation("eager")
    contexts = [model.compute_context(IDS, LEFT).float() for model in (eager, plain)]
    assert (contexts[0] - contexts[1]).norm() < 0.02 * contexts[1].norm()


@pytest.mark.parametrize(
    "name",
    [
        "flash_attention_2",
        "flash_attention_3",
        "flex_attention",
        "paged|eager",
        "paged|sdpa",
        "owner/kernel",
        "x",
        3,
    ],
)
def test_other_attention_is_refused(build: Build, folder: Path, name: str) -> None:
    model, message = build(), re.escape(f"attn_implementation = {name!r} cannot take")
    with pytest.raises(ConfigError, match=message):
        model.set_attn_implementation(name)
    for load in (BitLMForCausalLM.load, AutoModelForCausalLM.from_pretrained):
        with pytest.raises(ConfigError, match=message):
            load(folder, attn_implementation=name)


def test_attention_that_is_set_elsewhere_counts(build: Build, folder: Path) -> None:
    """On the backbone alone, in a configuration, by an argument of loading."""
    model = build()
    model.model.set_attn_implementation("flex_attention")
    with pytest.raises(ConfigError, match="attn_implementation = 'flex_attention'"):
        model.compute_context(IDS)
    with pytest.raises(ConfigError, match="attn_implementation = 'flash_attention_2'"):
        AutoModelForCausalLM.from_config(build().config, attn_implementation="flash_attention_2")
    loaded = BitLMForCausalLM.load(folder, attn_implementation="eager")
    assert loaded.config._attn_implementation == loaded.model.config._attn_implementation == "eager"
    assert_same(loaded, BitLMForCausalLM.load(folder), 1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_casting_is_loading_in_that_precision(folder: Path, dtype: torch.dtype) -> None:
    """Rotary frequencies and log u stay in float32, also after the way back."""
    cast, loaded = BitLMForCausalLM.load(folder).to(dtype), BitLMForCausalLM.load(folder, dtype=dtype)
    assert {buffer.dtype for buffer in loaded.buffers()} == {torch.float32}
    for (name, buffer), other in zip(cast.named_buffers(), loaded.buffers(), strict=True):
        assert torch.equal(buffer, other), name
    assert_same(cast, loaded)
    back = cast.float()
    assert torch.equal(back.model.rotary_emb.inv_freq, loaded.model.rotary_emb.inv_freq)


@pytest.mark.parametrize(
    "given",
    [
        {"dtype": "float32"},
        {"torch_dtype": torch.float32},
        {"device_map": "cpu"},
        {"device_map": {"": "cpu"}},
        {"low_cpu_mem_usage": True},
        {"local_files_only": True},
    ],
)
def test_arguments_of_loading_that_change_nothing(folder: Path, given: dict) -> None:
    assert_same(BitLMForCausalLM.load(folder, **given), BitLMForCausalLM.load(folder))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"dtype": "half"}, "dtype = 'half': choose auto, float32, bfloat16, float16"),
        ({"dtype": torch.int8}, "dtype = torch.int8: choose"),
        ({"torch_dtype": {"": "float16"}}, "torch_dtype = {'': 'float16'}: choose"),
        ({"device_map": "auto"}, "device_map = 'auto': the model is loaded onto one device"),
        ({"device_map": {"model": "cpu", "head": 0}}, "the model is loaded onto one device"),
        ({"device_map": {}}, "the model is loaded onto one device"),
        ({"quantization_config": {"load_in_8bit": True}}, "quantization_config is not supported: .*bfloat16"),
        ({"use_kernels": True}, "use_kernels is not supported"),
        ({"tp_plan": "auto"}, "tp_plan is not supported"),
        ({"gguf_file": "model.gguf"}, "gguf_file is not supported"),
        ({"use_safetensors": False}, "only safetensors are read, since a pickle could run code"),
        ({"nonsense": 1}, "nonsense is no argument of from_pretrained and no field of BitLMConfig"),
        ({"rms_norm_eps": "small"}, "rms_norm_eps = 'small': Input should be a valid number"),
    ],
)
def test_arguments_of_loading_that_cannot_be_followed(folder: Path, given: dict, message: str) -> None:
    for load in (BitLMForCausalLM.load, BitLMForCausalLM.from_pretrained):
        with pytest.raises(ConfigError, match=message):
            load(folder, **given)


def test_the_vocabulary_is_fixed(build: Build) -> None:
    model, plain = build(), build()
    assert model.resize_token_embeddings(50) is model.resize_token_embeddings() is model.get_input_embeddings()
    model.tie_weights()
    assert_same(model, plain)
    for given in ({"new_num_tokens": 60}, {"new_num_tokens": 128}, {"pad_to_multiple_of": 64}):
        with pytest.raises(ConfigError, match="vocabulary of 50 tokens is fixed by their codes of 6 bits"):
            model.resize_token_embeddings(**given)
    with pytest.raises(ConfigError, match=r"expected an embedding with a weight of shape \(128, 32\)"):
        model.set_input_embeddings(nn.Embedding(50, 32))
    with pytest.raises(ConfigError, match="set_output_embeddings"):
        model.set_output_embeddings(nn.Linear(32, 128))
    assert_same(model, plain)
    other = nn.Embedding.from_pretrained(torch.randn(128, 32))
    model.set_input_embeddings(other)
    assert torch.equal(model.embed(IDS), other(IDS))


@pytest.mark.parametrize(
    ("name", "value"),
    [("block_size", 2), ("head", "lm"), ("vocab_size", 40), ("rope_theta", 1e4), ("tie_word_embeddings", False)],
)
def test_a_configuration_that_was_changed_after_building_is_refused(
    build: Build, tmp_path: Path, name: str, value: object
) -> None:
    model = build()
    before = getattr(model.config, name)
    setattr(model.config, name, value)
    uses = (
        lambda: model(IDS),
        lambda: model.compute_context(IDS),
        lambda: model.generate(PROMPTS, **SETTINGS),
        lambda: model.save_pretrained(tmp_path),
    )
    for use in uses:
        with pytest.raises(ConfigError, match=f"config.{name} was changed from {before!r} to {value!r}"):
            use()


@pytest.mark.filterwarnings("ignore:`gradient_checkpointing_enable` is deprecated")
@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing_changes_nothing(build: Build, reentrant: bool) -> None:
    model, plain = build(**CODEBOOK), build(**CODEBOOK)
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    model.train()
    for each in (model, plain):
        each(IDS, LEFT, noise=NOISE).loss.backward()
    for one, other in zip(model.parameters(), plain.parameters(), strict=True):
        assert torch.equal(one.grad, other.grad)
    with pytest.raises(ConfigError, match="gradient checkpointing keeps no cache"):
        model.generate(PROMPTS, **SETTINGS)
    assert_same(model.eval(), plain)


@pytest.mark.parametrize("options", [CODEBOOK, {"head": "lm", "tie_word_embeddings": False}])
def test_copies_are_the_model(build: Build, options: dict) -> None:
    model = build(**options)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(twin.compute_context(IDS), model.compute_context(IDS))
        assert twin.generate(PROMPTS, **SETTINGS) == model.generate(PROMPTS, **SETTINGS)


def test_every_auto_class_loads_it(folder: Path) -> None:
    for auto_class in (AutoModel, AutoModelForCausalLM):
        assert_same(auto_class.from_pretrained(folder), BitLMForCausalLM.load(folder))


def test_a_compiled_model_computes_the_same(build: Build) -> None:
    model = build(head="lm", num_hidden_layers=1)
    assert torch.compile(model, backend="eager")(IDS, LEFT).loss == model(IDS, LEFT).loss


@pytest.mark.parametrize("options", [CODEBOOK, {"head": "lm", "tie_word_embeddings": False}])
def test_an_adapter_on_any_linear_map_takes_part(build: Build, options: dict) -> None:
    """As LoRA puts them there: each map is called as a module, none of the weights is read past it."""
    model, called = build(**options), set()
    maps = [module for module in model.modules() if isinstance(module, nn.Linear)]
    for module in maps:
        module.register_forward_hook(lambda module, *_: called.add(module))
    model(IDS)
    assert called == set(maps)


def test_generation_has_a_loop_of_its_own(build: Build) -> None:
    with pytest.raises(ConfigError, match="call generate or stream"):
        build().prepare_inputs_for_generation(IDS)


def test_a_configuration_survives_as_a_dictionary(build: Build) -> None:
    config = build(**CODEBOOK).config
    again = BitLMConfig.from_dict(config.to_dict())
    assert again.to_dict() == config.to_dict()
