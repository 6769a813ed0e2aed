"""The rows of the ablation: settings of the pipeline that lie over one preset."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from bitlm.config import Head

PRESET = "tiny-article"  # the article's and BitDance's choices, which a row's settings change
LENGTH = 256
VOCABULARY = 1024
_DEEP = {"head_dim": 32, "head.num_layers": 3, "head.head_dim": 32}
SIZES = {
    "small": {"hidden_size": 128, "num_layers": 3, "num_heads": 4, "num_kv_heads": 2, "ffn_size": 384, **_DEEP},
    "trial": {"hidden_size": 192, "num_layers": 4, "num_heads": 6, "num_kv_heads": 3, "ffn_size": 640, **_DEEP},
}


@dataclass(frozen=True)
class Row:
    """``settings`` lie over ``PRESET``. ``start`` is the row whose backbone is taken over, and behind whose batches
    those of this one begin."""

    name: str
    settings: list[str]
    head: Head = "diffusion"
    start: str | None = None


def _diffusion(*settings: str) -> list[str]:
    return [f"pretrain.diffusion.{setting}" for setting in settings]


BCE = _diffusion("loss=bce")
MATCHED = [*BCE, "model.head.denoiser=matched_filter"]
PATHS = ["model.slot_embedding=true", "model.head.context_path=direct"]
MUON = ["pretrain.optimizer=muon"]
PRIOR = [*BCE, "model.head.denoiser=codebook_prior", *PATHS, *MUON]
TOKEN = [*_diffusion("loss=token"), "model.head.denoiser=codebook"]
CODEBOOK = [*TOKEN, *PATHS, *MUON]
FROM_LM = ["pretrain.init_from=lm"]
LEVELS = _diffusion("slot_noise=1", "t_distribution=uniform")
DRAWS = [*TOKEN, *FROM_LM, *LEVELS]
ATTENTION = ["model.head.attention=causal", "model.head.context_path=attention"]
CHAIN = [*TOKEN, *FROM_LM, *ATTENTION, *_diffusion("noise_share=0", "chain_slots=1")]
CODES = ["model.input=codes"]
CAUSAL = [*CHAIN, "model.mask=causal"]
TINY = [
    *CAUSAL,
    *LEVELS,
    *_diffusion("block_offsets=4", "noise_share=0.125"),
    "model.head.num_layers=1",
]

ROWS = {
    row.name: row
    for row in (
        Row("article", []),
        Row("x", _diffusion("loss=x")),
        Row("bce", BCE),
        Row("matched", MATCHED),
        Row("paths", [*MATCHED, *PATHS]),
        Row("muon", [*MATCHED, *PATHS, *MUON]),
        Row("prior", PRIOR),
        Row("prior-lm", [*PRIOR, *FROM_LM], start="lm-muon"),
        Row("codebook", CODEBOOK),
        Row("codebook-lm", [*CODEBOOK, *FROM_LM], start="lm-muon"),
        Row("codebook-noise", [*CODEBOOK, *FROM_LM, *_diffusion("slot_noise=0.7")], start="lm-muon"),
        Row("codebook-levels", [*CODEBOOK, *FROM_LM, *LEVELS], start="lm-muon"),
        # Noise draws, with full attention inside the block.
        Row("draws", DRAWS, start="lm"),
        Row("draws-4", [*DRAWS, *_diffusion("noise_draws=4")], start="lm"),
        Row("prefix-0.5", [*DRAWS, *_diffusion("prefix_share=0.5")], start="lm"),
        Row("prefix-1", [*DRAWS, *_diffusion("prefix_share=1")], start="lm"),
        Row("low-0.3", [*DRAWS, *_diffusion("t_low=0.3")], start="lm"),
        Row("logit-normal", [*DRAWS, *_diffusion("t_distribution=logit_normal")], start="lm"),
        Row(
            "uniform-0.1",
            [*DRAWS, *_diffusion("t_distribution=logit_normal", "uniform_share=0.1")],
            start="lm",
        ),
        Row("draws-causal", [*DRAWS, *ATTENTION], start="lm"),
        Row("self-conditioning", [*DRAWS, "model.head.self_conditioning=true"], start="lm"),
        # Clean prefixes in one pass of the head.
        Row("chain", CHAIN, start="lm"),
        Row("chain-all", [*CHAIN, *_diffusion("chain_slots=4")], start="lm"),
        Row("mixed", [*CHAIN, *LEVELS, *_diffusion("noise_share=0.25")], start="lm"),
        Row("layers-1", [*CHAIN, "model.head.num_layers=1"], start="lm"),
        Row("layers-2", [*CHAIN, "model.head.num_layers=2"], start="lm"),  # 3 in the rows above and below
        Row("codes", [*CHAIN, *CODES], start="lm-codes"),
        Row("flips-0.1", [*CHAIN, *CODES, *_diffusion("flip_share=0.1")], start="lm-codes"),
        # The same behind a causal mask in the backbone.
        Row("causal", CAUSAL, start="lm"),
        Row("offsets-2", [*CAUSAL, *_diffusion("block_offsets=2")], start="lm"),
        Row("offsets-4", [*CAUSAL, *_diffusion("block_offsets=4")], start="lm"),
        Row("next-token-0.3", [*CAUSAL, *_diffusion("next_token_weight=0.3")], start="lm"),
        Row("next-token-1", [*CAUSAL, *_diffusion("next_token_weight=1")], start="lm"),
        # The preset: blocks at all offsets, one in eight learning from noise too, and one layer.
        Row("tiny", TINY, start="lm"),
        Row("lm", [], head="lm"),
        Row("lm-on", FROM_LM, head="lm", start="lm"),
        Row("lm-codes", CODES, head="lm"),
        Row("lm-codes-on", [*FROM_LM, *CODES], head="lm", start="lm-codes"),
        Row("lm-qwen3", ["model.initialization=qwen3"], head="lm"),
        Row("lm-muon", MUON, head="lm"),
    )
}


def row_of(name: str) -> Row:
    """``ROW`` or ``ROW+KEY=VALUE+…``; of settings with the same key the last counts."""
    base, *changes = name.split("+")
    return replace(ROWS[base], name=name, settings=[*ROWS[base].settings, *changes])


def in_order(names: Sequence[str]) -> Iterator[Row]:
    """The rows of these names, each after the one that it starts from."""
    seen: set[str] = set()
    for name in names:
        for needed in (row_of(name).start, name):
            if needed is not None and needed not in seen:
                seen.add(needed)
                yield row_of(needed)
