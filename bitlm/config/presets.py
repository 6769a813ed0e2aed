"""The presets: functions that return the whole configuration of a pipeline.

The scales ``0.6b`` to ``8b`` have Qwen3's shapes and the settings of the article and of BitDance.
"""

from collections.abc import Callable

from bitlm.config.sections import Sections
from bitlm.config.stages import (
    CorpusConfig,
    DiffusionConfig,
    EvaluateConfig,
    FinetuneConfig,
    HeadConfig,
    Mask,
    ModelConfig,
    PretrainConfig,
    PromptConfig,
    TokenizerConfig,
    TokensConfig,
)

# Commits of what the presets read from the Hub, so that they mean the same text and tokenizer tomorrow.
REVISIONS = {
    "HuggingFaceFW/fineweb": "9bb295ddab0e05d785b879661af7260fed5140fc",  # v1.4.0
    "EdinburghNLP/xsum": "7d4d486c2f8ef850b1a11aead99b894ff3dd7da9",
    "Qwen/Qwen3-0.6B": "c1899de289a04d12100db370d81485cdf75e47ca",
}


def tiny() -> Sections:
    """The English text already on the machine; minutes on two CPU cores.

    Instead of the article's choices, it has those with which a small diffusion head learns most from the same tokens:
    the codebook, C as keys and values, causal attention and a causal mask, so that blocks that begin anywhere teach the
    chain of their slots, and the backbone of the LM head as the start. One block in eight also learns from noise,
    for the descent. Slots land one after the other on their most probable token.
    """
    diffusion = DiffusionConfig(
        loss="token", t_distribution="uniform", slot_noise=1, noise_share=0.125, chain_slots=1, block_offsets=4
    )
    head = HeadConfig(num_layers=1, head_dim=32, denoiser="codebook", context_path="attention", attention="causal")
    evaluate = EvaluateConfig(
        sampler="commit", examples=200, brier_blocks=200, execution={"cpus_per_actor": 2, "batch_size": 64}
    )
    return _tiny(head, diffusion, evaluate, mask="causal", init_from="lm")


def tiny_article() -> Sections:
    """``tiny`` with the choices of the article and of BitDance: the direct denoiser, to which C comes through adaptive
    norms alone, the velocity loss, the descent, and random start weights.
    """
    head = HeadConfig(num_layers=3, head_dim=32)
    evaluate = EvaluateConfig(examples=200, brier_blocks=200, execution={"cpus_per_actor": 2, "batch_size": 64})
    return _tiny(head, DiffusionConfig(), evaluate, mask="block", init_from=None)


def _tiny(
    head: HeadConfig, diffusion: DiffusionConfig, evaluate: EvaluateConfig, *, mask: Mask, init_from: str | None
) -> Sections:
    training = {
        "warmup_steps": 40,
        "diffusion": diffusion,
        "execution": {"cpus_per_worker": 2, "checkpoint_every": 125},
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
            mask=mask,
            head=head,
        ),
        prompt=PromptConfig(max_prompt_tokens=128, max_summary_tokens=24),
        pretrain=PretrainConfig(
            sequence_length=256,
            # One window holds the whole corpus, so that a short training does not see its first packages only.
            window_shards=16,
            batch_size=8,
            steps=250,
            learning_rate=5e-3,
            validate_every=125,
            validation_batches=4,
            init_from=init_from,
            **training,
        ),
        finetune=FinetuneConfig(
            batch_size=16, steps=150, learning_rate=1e-3, validate_every=75, validation_batches=4, **training
        ),
        evaluate=evaluate,
    )


def _qwen3(model: ModelConfig, *, learning_rate: float, workers: int) -> Sections:
    """FineWeb, the Qwen3 tokenizer and XSum, for a model of one of Qwen3's published shapes."""
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
            revision=REVISIONS["HuggingFaceFW/fineweb"],
            validation_fraction=0.001,
            summaries="hub:EdinburghNLP/xsum",
            summaries_revision=REVISIONS["EdinburghNLP/xsum"],
        ),
        tokenizer=TokenizerConfig(source="hub:Qwen/Qwen3-0.6B", revision=REVISIONS["Qwen/Qwen3-0.6B"]),
        model=model,
        pretrain=PretrainConfig(
            steps=20_000,
            batch_size=256,
            learning_rate=learning_rate,
            warmup_steps=1000,
            precision="bfloat16",
            validate_every=1000,
            validation_batches=4,
            execution=gpus,
        ),
        finetune=FinetuneConfig(
            steps=6400,
            batch_size=64,
            learning_rate=learning_rate / 10,
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
    model = ModelConfig(
        scale="0.6b", hidden_size=1024, num_layers=28, num_heads=16, num_kv_heads=8, head_dim=128, ffn_size=3072
    )
    return _qwen3(model, learning_rate=6e-4, workers=8)


def scale_1_7b() -> Sections:
    model = ModelConfig(
        scale="1.7b", hidden_size=2048, num_layers=28, num_heads=16, num_kv_heads=8, head_dim=128, ffn_size=6144
    )
    return _qwen3(model, learning_rate=4e-4, workers=8)


def scale_4b() -> Sections:
    model = ModelConfig(
        scale="4b", hidden_size=2560, num_layers=36, num_heads=32, num_kv_heads=8, head_dim=128, ffn_size=9728
    )
    return _qwen3(model, learning_rate=3e-4, workers=16)


def scale_8b() -> Sections:
    model = ModelConfig(
        scale="8b",
        hidden_size=4096,
        num_layers=36,
        num_heads=32,
        num_kv_heads=8,
        head_dim=128,
        ffn_size=12288,
        tie_embeddings=False,
    )
    return _qwen3(model, learning_rate=2e-4, workers=32)


PRESETS: dict[str, Callable[[], Sections]] = {
    "tiny": tiny,
    "tiny-article": tiny_article,
    "0.6b": scale_0_6b,
    "1.7b": scale_1_7b,
    "4b": scale_4b,
    "8b": scale_8b,
}
