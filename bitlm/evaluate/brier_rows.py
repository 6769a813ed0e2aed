"""BrierLM of each model for the report, that of a diffusion head also as a share of the LM head's."""

from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

from bitlm.artifacts.record import Record
from bitlm.evaluate import brier
from bitlm.evaluate.continuations import samples

Sampled = tuple[Record, Mapping[str, Any], pa.Table]
"""An evaluate record, ``brier`` of its ``scores.json``, and its ``continuations.parquet``."""
PLACES = ["sequence", "prompt_tokens", "truth"]


def rows(sampled: Sequence[Sampled]) -> list[dict[str, Any]]:
    """For each model its ``brier.score`` with the id of the ``artifact``, and ``share``, ``brier.ratio`` to the LM head
    that was sampled at the same places, None if there is none."""
    return [
        {"artifact": record.id, **scores, "share": _share(record, blocks, scores, sampled)}
        for record, scores, blocks in sampled
    ]


def _share(
    record: Record, blocks: pa.Table, scores: Mapping[str, Any], sampled: Sequence[Sampled]
) -> dict[str, Any] | None:
    if record.identity["head"] != "diffusion":
        return None
    for other, other_scores, other_blocks in sampled:
        same_text = scores["text"] == other_scores["text"]
        if other.identity["head"] == "lm" and same_text and blocks.select(PLACES) == other_blocks.select(PLACES):
            ours, theirs = (brier.terms(*samples(table)) for table in (blocks, other_blocks))
            interval = scores["interval"]
            sequences = blocks["sequence"].to_numpy()
            return {"against": other.id, **brier.ratio(ours, theirs, sequences, interval["samples"], interval["seed"])}
    return None
