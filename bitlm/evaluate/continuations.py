"""Where a model continues held-out text, for BrierLM: prompts, the true tokens behind them, and two samples of each.

What follows a first end token, a next document or a fill, is not foretold: it counts as end tokens, in the truth and in
the samples.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa

from bitlm.config import EvaluateConfig, Head
from bitlm.data.reading.batches import PretrainBatches
from bitlm.data.reading.order import permute
from bitlm.evaluate.brier import LENGTH
from bitlm.generation import Sampling

BLOCK = pa.list_(pa.int32(), LENGTH)
SCHEMA = pa.schema(
    [
        pa.field("sequence", pa.int64(), nullable=False),  # of the validation split, or the row of the example
        pa.field("prompt_tokens", pa.int32(), nullable=False),
        pa.field("truth", BLOCK, nullable=False),
        pa.field("first", BLOCK, nullable=False),
        pa.field("second", BLOCK, nullable=False),
    ]
)
"""Of ``continuations.parquet``: the true blocks, and the sampled ones."""


@dataclass(frozen=True)
class Positions:
    """``prompts``, the ``truth`` int64 [positions, 4] behind each, and the ``sequences`` int64 [positions] that they
    are taken from, by number."""

    prompts: list[list[int]]
    truth: np.ndarray
    sequences: np.ndarray

    def __len__(self) -> int:
        return len(self.prompts)


def in_text(batches: PretrainBatches, length: int, end_id: int, count: int, seed: int) -> Positions:
    """``count`` random places (all, if there are fewer) in the validation sequences of ``length`` tokens: the prompt is
    the start of the sequence, at least 4 tokens and a multiple of 4."""
    starts = range(LENGTH, length - LENGTH + 1, LENGTH)
    chosen = _chosen(batches.validation_count * len(starts), count, seed)
    numbers, places = np.divmod(chosen, len(starts))
    rows, of_position = np.unique(numbers, return_inverse=True)
    ids = batches.validation(rows.tolist()).input_ids.tolist()
    cuts = [(ids[row], starts[place]) for row, place in zip(of_position, places, strict=True)]
    return _positions(((row[:start], row[start:]) for row, start in cuts), numbers, end_id)


def in_summaries(
    prompts: Sequence[list[int]], summaries: Sequence[list[int]], end_id: int, count: int, seed: int
) -> Positions:
    """``count`` random blocks of 4 tokens (all, if there are fewer) of summaries that end with an end token: the prompt
    is the example's own and the summary before the block. Sequences are numbered as the examples are."""
    blocks = [(number, start) for number, summary in enumerate(summaries) for start in range(0, len(summary), LENGTH)]
    cuts = [blocks[index] for index in _chosen(len(blocks), count, seed)]
    parts = ((prompts[row] + summaries[row][:start], summaries[row][start:]) for row, start in cuts)
    return _positions(parts, np.array([row for row, _ in cuts], dtype=np.int64), end_id)


def to_table(positions: Positions, first: list[list[int]], second: list[list[int]]) -> pa.Table:
    """The samples, [positions, 4] each, as rows of ``SCHEMA``."""
    lengths = [len(prompt) for prompt in positions.prompts]
    columns = positions.sequences, lengths, positions.truth.tolist(), first, second
    return pa.table(dict(zip(SCHEMA.names, columns, strict=True)), schema=SCHEMA)


def samples(table: pa.Table) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """First, second and true blocks of a ``continuations.parquet``, int64 [positions, 4]."""
    first, second, truth = (np.array(table[name].to_pylist(), dtype=np.int64) for name in ("first", "second", "truth"))
    return first, second, truth


def until_end(ids: Sequence[int], end_id: int) -> list[int]:
    """The first 4 of the ids; end tokens from the first one on, and where there are too few."""
    kept = list(ids[:LENGTH])
    kept = kept[: kept.index(end_id)] if end_id in kept else kept
    return kept + [end_id] * (LENGTH - len(kept))


def random_sampling(settings: EvaluateConfig, head: Head) -> Sampling:
    """The configured sampling of 4 tokens; at temperature 1 where it takes the most probable token, of which two
    samples would tell nothing. The descent samples by its noise and has no temperature."""
    sampling = Sampling.of(settings, LENGTH)
    greedy = not sampling.temperature and (head == "lm" or sampling.sampler == "commit")
    return replace(sampling, temperature=1.0) if greedy else sampling


def random_sampler(settings: EvaluateConfig, head: Head) -> str:
    """``random_sampling`` in a few words, as in tables."""
    sampling = random_sampling(settings, head)
    return f"temperature {sampling.temperature:g}" if head == "lm" else sampling.name


def example_ids(rows: Iterable[int]) -> list[int]:
    """To which the noise of the two samples of each position belongs, one behind the other."""
    return [2 * row + sample for row in rows for sample in range(2)]


def _chosen(available: int, count: int, seed: int) -> np.ndarray:
    """Random numbers below ``available``, in order and without repetition."""
    return np.sort(permute(np.arange(min(count, available)), available, f"{seed}/positions"))


def _positions(parts: Iterable[tuple[list[int], list[int]]], sequences: np.ndarray, end_id: int) -> Positions:
    prompts, truth = [], []
    for prompt, behind in parts:
        prompts.append(prompt)
        truth.append(until_end(behind, end_id))
    return Positions(prompts, np.array(truth, dtype=np.int64).reshape(-1, LENGTH), sequences)
