"""The configuration of a whole pipeline, and the checks of values that must go together.

A value that is wrong by itself is refused by its own model in ``stages.py``.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from pydantic import model_validator

from bitlm.config import losses, sampler
from bitlm.config.frozen import Frozen
from bitlm.config.stages import (
    CorpusConfig,
    EvaluateConfig,
    FinetuneConfig,
    ModelConfig,
    PretrainConfig,
    PromptConfig,
    ReportConfig,
    TokenizerConfig,
    TokensConfig,
    TrainConfig,
)


class Sections(Frozen):
    """One section for each stage, and ``model`` and ``prompt``, which several stages use."""

    corpus: CorpusConfig = CorpusConfig()
    tokenizer: TokenizerConfig = TokenizerConfig()
    tokens: TokensConfig = TokensConfig()
    model: ModelConfig = ModelConfig()
    prompt: PromptConfig = PromptConfig()
    pretrain: PretrainConfig = PretrainConfig()
    finetune: FinetuneConfig = FinetuneConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    report: ReportConfig = ReportConfig()

    @model_validator(mode="after")
    def _check_combinations(self) -> "Sections":
        for check in CHECKS:
            check(self)
        return self


def _integers_have_64_bits(config: Sections) -> None:
    for key, value in _values(config.model_dump(), ""):
        if isinstance(value, int) and not -(2**63) <= value < 2**63:
            raise ValueError(f"{key} does not fit into 64 bits")


def _values(tree: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for name, value in tree.items():
        if isinstance(value, Mapping):
            yield from _values(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def _sequence_is_whole_blocks(config: Sections) -> None:
    m, length = config.model.block_size, config.pretrain.sequence_length
    if length % m:
        raise ValueError(f"model.block_size = {m} does not divide pretrain.sequence_length = {length}")


def _sequence_is_whole_packed_codes(config: Sections) -> None:
    length = config.pretrain.sequence_length
    if length % 8:
        raise ValueError(f"pretrain.sequence_length = {length} is not a multiple of 8, the tokens of one packed code")


def _summary_is_whole_blocks(config: Sections) -> None:
    m, length = config.model.block_size, config.prompt.max_summary_tokens
    if length % m:
        raise ValueError(f"model.block_size = {m} does not divide prompt.max_summary_tokens = {length}")


def _key_value_heads_divide_heads(config: Sections) -> None:
    heads, kv_heads = config.model.num_heads, config.model.num_kv_heads
    if heads % kv_heads:
        raise ValueError(f"model.num_kv_heads = {kv_heads} does not divide model.num_heads = {heads}")


def _head_fits_backbone(config: Sections) -> None:
    config.model.head.check(config.model.hidden_size, "model.head.")


def _losses_fit_model(config: Sections) -> None:
    model = config.model
    for key, stage in _trainings(config):
        place = losses.Place(f"{key}.diffusion.", "model.", "model.head.")
        losses.check(stage.diffusion, model.head, model.mask, model.block_size, place)


def _estimates_are_learned(config: Sections) -> None:
    for key, stage in _trainings(config):
        if config.model.head.self_conditioning and stage.diffusion.noise_share == 0:
            raise ValueError(
                f"model.head.self_conditioning learns from noise draws, and {key}.diffusion.noise_share = 0 leaves none"
            )


def _flipped_bits_are_fed(config: Sections) -> None:
    for key, stage in _trainings(config):
        if stage.diffusion.flip_share and config.model.input != "codes":
            raise ValueError(
                f"{key}.diffusion.flip_share = {stage.diffusion.flip_share} needs model.input = codes, whose bits it "
                "flips"
            )


def _bits_cover_vocabulary(config: Sections) -> None:
    bits, vocab_size = config.tokenizer.num_bits, config.tokenizer.vocab_size
    if config.tokenizer.source == "train" and bits is not None and 2**bits < vocab_size:
        least = (vocab_size - 1).bit_length()
        raise ValueError(
            f"tokenizer.num_bits = {bits} is too small for tokenizer.vocab_size = {vocab_size}: at least {least} are "
            "needed"
        )


def _workers_divide_batch(config: Sections) -> None:
    for key, stage in _trainings(config):
        workers, batch = stage.execution.num_workers, stage.batch_size
        if batch % workers:
            raise ValueError(f"{key}.execution.num_workers = {workers} does not divide {key}.batch_size = {batch}")


def _sampler_has_its_options(config: Sections) -> None:
    sampler.check(config.evaluate, "evaluate.")


def _landing_slots_divide_block(config: Sections) -> None:
    m, slots = config.model.block_size, config.evaluate.slots_per_call
    if m % slots:
        raise ValueError(f"evaluate.slots_per_call = {slots} does not divide model.block_size = {m}")


def _descent_has_no_temperature(config: Sections) -> None:
    temperature = config.evaluate.temperature
    if temperature and config.evaluate.sampler == "descent" and "diffusion" in config.pretrain.heads:
        raise ValueError(
            f"evaluate.temperature = {temperature} needs evaluate.sampler = commit for the diffusion head: the descent "
            "samples by its noise"
        )


def _trainings(config: Sections) -> Iterator[tuple[str, TrainConfig]]:
    yield "pretrain", config.pretrain
    yield "finetune", config.finetune


CHECKS: tuple[Callable[[Sections], None], ...] = (
    _integers_have_64_bits,
    _sequence_is_whole_blocks,
    _sequence_is_whole_packed_codes,
    _summary_is_whole_blocks,
    _key_value_heads_divide_heads,
    _head_fits_backbone,
    _losses_fit_model,
    _estimates_are_learned,
    _flipped_bits_are_fed,
    _bits_cover_vocabulary,
    _workers_divide_batch,
    _sampler_has_its_options,
    _landing_slots_divide_block,
    _descent_has_no_temperature,
)
"""Each raises ValueError, in a message that names the keys, or accepts the configuration."""
