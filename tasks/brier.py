"""BrierLM in the evaluate stage: behind which prompts a model is sampled, and the figures of what it wrote.

A pretrained model continues validation sequences of the text that it was pretrained on, a fine-tuned one the summaries
of the examples that are scored, at places in between. So each figure says how well a model does what it learned last.
"""

from collections.abc import Sequence
from contextlib import closing
from typing import Any

import pyarrow as pa

from bitlm.artifacts.record import Record
from bitlm.config import EvaluateConfig
from bitlm.data.reading.batches import open_pretrain
from bitlm.data.shards.tokenizer import TextTokenizer
from bitlm.data.summaries.examples import Example
from bitlm.data.summaries.prompts import encode_summaries
from bitlm.errors import ConfigError
from bitlm.evaluate import brier
from bitlm.evaluate.continuations import Positions, in_summaries, in_text, random_sampler, samples
from bitlm.steps import Step
from bitlm_tasks.run import Run
from bitlm_tasks.training import check_tokenizer

CONTINUED = {"pretrain": "held-out text", "finetune": "reference summaries"}


def find_positions(
    step: Step,
    run: Run,
    settings: EvaluateConfig,
    tokenizer: TextTokenizer,
    examples: Sequence[Example],
    prompts: Sequence[list[int]],
) -> Positions:
    """Raises ConfigError if the text has no place for a block, ArtifactError if it has another tokenizer."""
    model, end_id = run.input(step, "model"), tokenizer.info.end_id
    count, seed = settings.brier_blocks, settings.seed
    if model.stage == "finetune":
        summaries = encode_summaries(tokenizer, [example.summary for example in examples], run.config.prompt)
        return in_summaries(prompts, summaries, end_id, count, seed)
    tokens, length = run.input(step, "tokens"), model.identity["sequence_length"]
    check_tokenizer(tokens, run.input(step, "tokenizer"))
    config = run.config.pretrain.model_copy(update={"sequence_length": length})
    with closing(open_pretrain(run.store, tokens, config)) as text:
        positions = in_text(text, length, end_id, count, seed)
    if not len(positions):
        raise ConfigError(
            f"{tokens.id} holds no validation sequence of {length} tokens, so there is nothing to continue: use more "
            "text, or evaluate.brier_blocks = 0 for no BrierLM"
        )
    return positions


def score_blocks(model: Record, settings: EvaluateConfig, blocks: pa.Table) -> dict[str, Any]:
    """``brier.score`` of the rows of ``continuations.parquet``; ``text``, what was continued; ``sampler``, how."""
    sequences = blocks["sequence"].to_numpy()
    scores = brier.score(*samples(blocks), sequences, settings.bootstrap_samples, settings.seed)
    return scores | {"text": CONTINUED[model.stage], "sampler": random_sampler(settings, model.identity["head"])}
