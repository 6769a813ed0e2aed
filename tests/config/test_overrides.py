import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from bitlm.config import PRESETS, DiffusionConfig, EvaluateConfig, PipelineConfig, configure
from bitlm.config.overrides import keys, validate
from bitlm.errors import ConfigError

# hidden, layers, q heads, kv heads, head_dim, ffn, tied: Qwen3's published shapes.
QWEN3 = {
    "0.6b": (1024, 28, 16, 8, 128, 3072, True),
    "1.7b": (2048, 28, 16, 8, 128, 6144, True),
    "4b": (2560, 36, 32, 8, 128, 9728, True),
    "8b": (4096, 36, 32, 8, 128, 12288, False),
}


@pytest.mark.parametrize("preset", QWEN3)
def test_scales_have_qwen3_shapes(preset):
    m = configure(preset).model
    assert (
        m.hidden_size,
        m.num_layers,
        m.num_heads,
        m.num_kv_heads,
        m.head_dim,
        m.ffn_size,
        m.tie_embeddings,
    ) == QWEN3[preset]
    assert (m.rope_theta, m.rms_norm_eps, m.block_size) == (1e6, 1e-6, 4)


@pytest.mark.parametrize("preset", PRESETS)
def test_the_article_settings_are_the_defaults(preset):
    config = configure(preset)
    assert EvaluateConfig().sampler_name.startswith("descent K=15 ω=9")
    assert (
        config.pretrain.diffusion.t_mean,
        config.pretrain.diffusion.t_std,
        config.pretrain.diffusion.condition_dropout,
    ) == (0.8, 0.8, 0.1)


@pytest.mark.parametrize(
    ("assignment", "expected"),
    [
        ("pretrain.stepz=3", "pretrain.stepz is unknown; the nearest valid one is pretrain.steps"),
        (
            "pretrain.num_workers=2",
            "pretrain.num_workers is unknown; the nearest valid one is pretrain.execution.num_workers",
        ),
        ("block_size=4", "block_size is unknown; the nearest valid one is model.block_size"),
        ("pretrain.steps=many", 'pretrain.steps = "many": Input should be a valid integer'),
        ("pretrain.steps=1.5", "pretrain.steps = 1.5: Input should be a valid integer"),
        ("evaluate.guidance_scale=-1", "evaluate.guidance_scale = -1: Input should be greater than or equal to 0"),
        ("pretrain.learning_rate=NaN", "pretrain.learning_rate = NaN: Input should be a finite number"),
        ("model.block_size=3", "model.block_size = 3 does not divide pretrain.sequence_length = 256"),
        ("pretrain.sequence_length=252", "pretrain.sequence_length = 252 is not a multiple of 8"),
        ("prompt.max_summary_tokens=22", "model.block_size = 4 does not divide prompt.max_summary_tokens = 22"),
        ("tokenizer.num_bits=3", "tokenizer.num_bits = 3 is too small for tokenizer.vocab_size"),
        ("model.num_kv_heads=4", "model.num_kv_heads = 4 does not divide model.num_heads"),
        ("model.head.head_dim=100", "model.head.head_dim = 100 does not divide the head's width"),
        (
            "model.head.codebook_rank=200",
            "model.head.codebook_rank = 200 is more than the backbone's hidden_size = 192",
        ),
        ("pretrain.execution.num_workers=3", "pretrain.execution.num_workers = 3 does not divide pretrain.batch_size"),
        ("pretrain.steps", "expected stage.key=value"),
        ("=x", "--set =x: expected stage.key=value, for example pretrain.steps=2000"),
        ("pretrain.steps.x=1", "pretrain.steps.x is unknown"),
        ("pretrain.steps.=1", "pretrain.steps. is unknown"),
        ("pretrain..steps=1", "pretrain..steps is unknown; the nearest valid one is pretrain.steps"),
        ("pretrain=5", "pretrain is a section: set one of its values, for example pretrain.steps=…"),
        ("pretrain=null", "pretrain is a section"),
        ("pretrain.execution=[]", "pretrain.execution is a section"),
        ('pretrain={"stps": 5}', "pretrain.stps is unknown; the nearest valid one is pretrain.steps"),
        (
            'corpus={"name": 2024}',
            "corpus.name = 2024: Input should be a valid string; in JSON a text stands in quotes",
        ),
        ("pretrain.steps=true", 'pretrain.steps = "true": Input should be a valid integer'),
        ("pretrain.steps=null", "pretrain.steps = null: Input should be a valid integer"),
        ("pretrain.steps=", 'pretrain.steps = "": Input should be a valid integer'),
        ("pretrain.steps=0x10", 'pretrain.steps = "0x10": Input should be a valid integer'),
        ("pretrain.steps=-1", "pretrain.steps = -1: Input should be greater than or equal to 1"),
        (f"pretrain.steps={10**400}", "pretrain.steps does not fit into 64 bits"),
        (f"pretrain.steps=1{'0' * 9000}", "Unable to parse input string as an integer"),
        (f"pretrain.steps={'[' * 100_000}", "Input should be a valid integer"),
        ("pretrain.learning_rate=inf", 'pretrain.learning_rate = "inf": Input should be a finite number'),
        ("pretrain.learning_rate=1e999", "pretrain.learning_rate = Infinity: Input should be a finite number"),
        ("pretrain.execution.use_gpu=2", "pretrain.execution.use_gpu = 2: Input should be a valid boolean"),
        ("pretrain.heads=lm", 'pretrain.heads = "lm": Input should be a valid tuple; give a list, such as ["lm"]'),
        ('pretrain.heads=["lm", 1]', "pretrain.heads.1 = 1: Input should be 'diffusion' or 'lm'"),
        ('pretrain.heads=["lm", "lm"]', "a head is named twice"),
        ("evaluate.split=1", "evaluate.split = \"1\": Input should be 'validation' or 'test'"),
        ("evaluate.seed=-1", "evaluate.seed = -1: Input should be greater than or equal to 0"),
        ("corpus.subset=", 'corpus.subset = "": String should have at least 1 character'),
        ("model.head_dim=33", "model.head_dim = 33: Input should be a multiple of 2"),
        ("model.rope_theta=0", "model.rope_theta = 0: Input should be greater than 0"),
        ("preset=tinny", "preset = 'tinny' is unknown; presets: tiny"),
    ],
    ids=lambda value: value[:40],
)
def test_mistakes_are_one_line_that_names_the_key(assignment, expected):
    with pytest.raises(ConfigError) as error:
        configure("tiny", [assignment])
    message = str(error.value)
    assert expected in message
    assert "\n" not in message
    assert len(message) < 250


TEXTS = [
    "2024",
    "1e5",
    "true",
    "null",
    "007",
    "0x10",
    "1_000",
    "~",
    "yes",
    "# x",
    "a: b",
    "[a]",
    "[1]",
    "{}",
    " x ",
    "",
]


@pytest.mark.parametrize("text", TEXTS)
def test_a_text_is_taken_as_it_is_written(text: str) -> None:
    assert configure("tiny", [f"report.title={text}"]).report.title == text
    assert configure("tiny", [f"report.title={json.dumps(text)}"]).report.title == text  # quoted, it is JSON
    assert configure("tiny", [f"tokenizer.end_token={text}x"]).tokenizer.end_token == f"{text}x"


@given(st.text())
def test_any_text_can_be_given_quoted_and_what_is_not_json_as_it_is(text: str) -> None:
    assert configure("tiny", [f"report.title={json.dumps(text)}"]).report.title == text
    assert configure("tiny", [f"report.title=x{text}"]).report.title == f"x{text}"


def test_names_and_choices_that_look_like_numbers() -> None:
    config = configure("tiny", ["corpus.name=2024", "model.scale=0.6", "corpus.subset=10", "corpus.revision=1e5"])
    assert (config.corpus.name, config.model.scale) == ("2024", "0.6")
    assert (config.corpus.subset, config.corpus.revision) == ("10", "1e5")


def test_null_is_none_where_there_may_be_nothing() -> None:
    config = configure("0.6b", ["corpus.subset=null", "corpus.revision=null", "pretrain.init_from=null"])
    assert (config.corpus.subset, config.corpus.revision, config.pretrain.init_from) == (None, None, None)
    assert configure("0.6b", ['corpus.subset="null"']).corpus.subset == "null"


def test_the_last_of_several_assignments_counts_and_a_section_changes_what_it_names() -> None:
    assignments = ["pretrain.steps=3", 'pretrain={"batch_size": 4}', "pretrain.seed=1", "pretrain.seed=2"]
    pretrain = configure("tiny", assignments).pretrain
    assert (pretrain.steps, pretrain.batch_size, pretrain.seed) == (3, 4, 2)
    assert configure("tiny", ["preset=0.6b"]) == configure("0.6b")


def test_a_codebooks_rank_needs_a_codebook():
    with pytest.raises(ConfigError, match=r"model\.head\.codebook_rank = 8 needs model\.head\.denoiser = codebook"):
        configure("0.6b", ["model.head.codebook_rank=8"])


@pytest.mark.parametrize("preset", ["tiny-article", *QWEN3])
def test_the_articles_choices_are_those_of_every_preset_but_tiny(preset):
    config = configure(preset)
    head = config.model.head
    assert (head.denoiser, head.context_path, head.attention, config.model.mask) == ("direct", "norm", "full", "block")
    assert not config.model.slot_embedding
    assert config.pretrain.init_from is None
    assert config.evaluate.sampler_identity() == EvaluateConfig().sampler_identity()
    for stage in (config.pretrain, config.finetune):
        assert (stage.diffusion, stage.optimizer) == (DiffusionConfig(), "adamw")
        assert (stage.diffusion.loss, stage.diffusion.slot_noise, stage.diffusion.chain_slots) == ("velocity", 0, 0)


def test_tiny_and_tiny_article_are_assignments_apart():
    assignments = ["model.mask=causal", "pretrain.init_from=lm", "evaluate.sampler=commit"]
    head = ("denoiser=codebook", "context_path=attention", "attention=causal", "num_layers=1")
    assignments += [f"model.head.{setting}" for setting in head]
    levels = ("loss=token", "t_distribution=uniform", "slot_noise=1", "noise_share=0.125")
    chain = ("chain_slots=1", "block_offsets=4")
    assignments += [f"{stage}.diffusion.{one}" for stage in ("pretrain", "finetune") for one in (*levels, *chain)]
    assert configure("tiny-article", assignments).model_dump(exclude={"preset"}) == configure("tiny").model_dump(
        exclude={"preset"}
    )


def test_unknown_preset_names_the_nearest():
    with pytest.raises(ConfigError, match=r"preset 'tinny' is unknown; the nearest valid one is tiny"):
        configure("tinny")


def test_overrides_lie_over_the_preset_wherever_they_come_from():
    by_assignment = configure("4b", ["pretrain.steps=10", "pretrain.execution.num_workers=4"])
    by_json = PipelineConfig.model_validate(
        json.loads('{"preset": "4b", "pretrain": {"steps": 10, "execution": {"num_workers": 4}}}')
    )
    assert by_assignment == by_json
    assert by_json.pretrain.batch_size == PRESETS["4b"]().pretrain.batch_size
    assert PipelineConfig.model_validate(by_json.model_dump(mode="json")) == by_json


def test_execution_never_enters_the_identity():
    fast = configure(
        "tiny", ["pretrain.execution.num_workers=2", "tokens.execution.num_workers=2", "corpus.name=other"]
    )
    slow = configure("tiny")
    assert fast != slow
    for section in ("corpus", "tokens", "pretrain", "evaluate"):
        assert getattr(fast, section).identity() == getattr(slow, section).identity()


def test_diffusion_settings_do_not_concern_the_lm_head():
    changed, default = configure("tiny", ["pretrain.diffusion.noise_draws=4"]).pretrain, configure("tiny").pretrain
    assert changed.identity_for("lm") == default.identity_for("lm")
    assert changed.identity_for("diffusion") != default.identity_for("diffusion")


def test_configuration_is_frozen():
    with pytest.raises(ValidationError):
        configure("tiny").pretrain.steps = 3


@given(st.sampled_from(keys()))
def test_every_listed_key_can_be_set_to_its_own_value(key):
    config = configure("tiny").model_dump(mode="json")
    value = config
    for part in key.split("."):
        value = value[part]
    assert configure("tiny", [f"{key}={json.dumps(value)}"]) == configure("tiny")


def test_validate_tells_the_first_mistake_of_json_too():
    with pytest.raises(ConfigError, match=r"pretrain\.stps is unknown"):
        validate({"preset": "tiny", "pretrain": {"stps": 1}})


@pytest.mark.parametrize("key", ["model.scale", "corpus.name"])
@pytest.mark.parametrize("name", ["my/model", "..", "../x", "", ".x", "My", "a b", "a@v1", "x" * 65])
def test_a_value_that_becomes_part_of_an_artifacts_name_is_a_name(key: str, name: str) -> None:
    with pytest.raises(ConfigError, match=rf"^{key} = .*: String should match pattern"):
        configure("tiny", [f'{key}="{name}"'])
