"""ROUGE of each diffusion head minus that of the LM head after the same training, paired by example."""

from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

from bitlm.artifacts.record import Record
from bitlm.evaluate import rouge
from bitlm.evaluate.predictions import scores_of

Evaluation = tuple[Record, Mapping[str, Any], pa.Table]
"""An evaluate record, its ``scores.json`` and its ``predictions.parquet``."""


def to_lm_head(evaluations: Sequence[Evaluation]) -> list[dict[str, Any]]:
    """``rouge.paired`` of every diffusion head for which an LM head was scored after the same kind of training, on the
    same examples and by the same words, with the ids of both, ``artifact`` and ``against``."""
    found = []
    for record, scores, predictions in evaluations:
        if record.identity.get("head") != "diffusion":
            continue
        for other, other_scores, other_predictions in evaluations:
            if other.identity.get("head") != "lm" or _compared(record, scores) != _compared(other, other_scores):
                continue
            if predictions.select(["id", "reference"]) != other_predictions.select(["id", "reference"]):
                continue
            interval = scores["interval"]
            values = scores_of(predictions), scores_of(other_predictions)
            pair = rouge.paired(*values, interval["samples"], interval["seed"])
            found.append({"artifact": record.id, "against": other.id, **pair})
    return found


def _compared(record: Record, scores: Mapping[str, Any]) -> tuple[str, str]:
    """What must be equal: the stage that trained the model, and what the scores count as words."""
    return record.inputs["model"].id.partition("/")[0], scores["implementation"]
