"""A scale is a function that returns the sections of a configuration.

Sizes are Qwen3's, settings the article's and BitDance's.
"""

from collections.abc import Callable

from bitlm.config.sections import Sections
from bitlm.config.stages import (
    CorpusConfig,
    DiffusionConfig,
    EvaluateConfig,
    FinetuneConfig,
    HeadConfig,
    ModelConfig,
    PretrainConfig,
    PromptConfig,
    TokenizerConfig,
    TokensConfig,
)


def tiny() -> Sections:
    """The English text already on the machine, two CPU cores, minutes.

    Not the article's choices but those with which a small diffusion head learns most in the same time: the codebook,
    uniform noise levels of every slot's own, and the LM head's backbone, which is trained anyway, as the start.
    """
    diffusion = DiffusionConfig(loss="token", t_distribution="uniform", slot_noise=1)
    return _tiny({"denoiser": "codebook"}, diffusion, init_from="lm", stagger=0.5)


def tiny_article() -> Sections:
    """``tiny`` with the article's and BitDance's choices: the direct denoiser, told of C by adaptive norms alone, and
    the velocity loss, from untrained weights."""
    return _tiny({}, DiffusionConfig(), init_from=None, stagger=0.0)


def _tiny(head: dict[str, str], diffusion: DiffusionConfig, *, init_from: str | None, stagger: float) -> Sections:
    training = {
        "warmup_steps": 40,
        "diffusion": diffusion,
        "execution": {"cpus_per_worker": 2, "checkpoint_every": 100},
    }
    return Sections(
        corpus=CorpusConfig(name="tiny", validation_fraction=0.02),
        tokenizer=TokenizerConfig(vocab_size=2048),
        tokens=TokensConfig(unit_bytes=4 * 2**20),
        model=ModelConfig(
            scale="tiny",
            hidden_size=192,
            num_layers=4,
            num_heads=6,
            num_kv_heads=3,
            head_dim=32,
            ffn_size=512,
            initialization="scaled",
            head=HeadConfig(num_layers=3, head_dim=32, **head),
        ),
        prompt=PromptConfig(max_prompt_tokens=128, max_summary_tokens=24),
        pretrain=PretrainConfig(
            sequence_length=256,
            # One window over the whole corpus: a short training must not see its first packages only.
            window_shards=16,
            batch_size=8,
            steps=300,
            learning_rate=5e-3,
            validate_every=50,
            validation_batches=4,
            init_from=init_from,
            **training,
        ),
        finetune=FinetuneConfig(
            batch_size=16, steps=150, learning_rate=1e-3, validate_every=50, validation_batches=4, **training
        ),
        evaluate=EvaluateConfig(examples=200, stagger=stagger, execution={"cpus_per_actor": 2}),
    )


def _qwen3(
    scale: str, *, hidden: int, layers: int, heads: int, ffn: int, tied: bool, lr: float, workers: int
) -> Sections:
    """FineWeb, the Qwen3 tokenizer and XSum, at one of Qwen3's published sizes."""
    gpus = {
        "num_workers": workers,
        "use_gpu": True,
        "cpus_per_worker": 8,
        "micro_batch_size": 1,
        "checkpoint_every": 1000,
    }
    return Sections(
        corpus=CorpusConfig(
            name="fineweb-10bt",
            source="hub:HuggingFaceFW/fineweb",
            subset="sample-10BT",
            validation_fraction=0.001,
            summaries="hub:EdinburghNLP/xsum",
        ),
        tokenizer=TokenizerConfig(source="hub:Qwen/Qwen3-0.6B"),
        model=ModelConfig(
            scale=scale,
            hidden_size=hidden,
            num_layers=layers,
            num_heads=heads,
            num_kv_heads=8,
            head_dim=128,
            ffn_size=ffn,
            tie_embeddings=tied,
        ),
        pretrain=PretrainConfig(
            steps=20_000,
            batch_size=256,
            learning_rate=lr,
            warmup_steps=1000,
            precision="bfloat16",
            validate_every=1000,
            validation_batches=4,
            execution=gpus,
        ),
        finetune=FinetuneConfig(
            steps=6400,
            batch_size=64,
            learning_rate=lr / 10,
            warmup_steps=200,
            precision="bfloat16",
            validate_every=500,
            validation_batches=8,
            execution=gpus,
        ),
        evaluate=EvaluateConfig(
            execution={"num_actors": workers, "cpus_per_actor": 4, "use_gpu": True, "batch_size": 64}
        ),
    )


def scale_0_6b() -> Sections:
    return _qwen3("0.6b", hidden=1024, layers=28, heads=16, ffn=3072, tied=True, lr=6e-4, workers=8)


def scale_1_7b() -> Sections:
    return _qwen3("1.7b", hidden=2048, layers=28, heads=16, ffn=6144, tied=True, lr=4e-4, workers=8)


def scale_4b() -> Sections:
    return _qwen3("4b", hidden=2560, layers=36, heads=32, ffn=9728, tied=True, lr=3e-4, workers=16)


def scale_8b() -> Sections:
    return _qwen3("8b", hidden=4096, layers=36, heads=32, ffn=12288, tied=False, lr=2e-4, workers=32)


PRESETS: dict[str, Callable[[], Sections]] = {
    "tiny": tiny,
    "tiny-article": tiny_article,
    "0.6b": scale_0_6b,
    "1.7b": scale_1_7b,
    "4b": scale_4b,
    "8b": scale_8b,
}
