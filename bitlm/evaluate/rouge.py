"""ROUGE F1 ×100 by the ``rouge-score`` package, and bootstrap intervals of the mean over examples.

rougeL reads a text as one sequence and ignores line breaks. rougeLsum takes the union of the matches sentence by
sentence, so it depends on where sentences end: in both texts, at line breaks and at the ends of ``lead.sentences``.
"""

import gzip
import io
import json
import zlib
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from importlib.metadata import version
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from rouge_score.rouge_scorer import RougeScorer

from bitlm import storage
from bitlm.errors import SourceError
from bitlm.evaluate.lead import sentences
from bitlm.evaluate.measures import MEASURES
from bitlm.evaluate.words import WordTokenizer, is_unread
from bitlm.evaluate.words import tokenizer as word_tokenizer
from bitlm.text import short

IMPLEMENTATIONS: dict[WordTokenizer, str] = {
    "rouge": f"rouge-score {version('rouge-score')}, stemming",
    "unicode": f"rouge-score {version('rouge-score')}, Unicode words",
}
NEWLINES = "rougeL ignores line breaks; for rougeLsum they and bitlm.evaluate.lead split sentences"
# Columns to look for, in this order. The pipeline's predictions.parquet can be given for both sides.
PREDICTION_COLUMNS = ("prediction", "text", "summary")
REFERENCE_COLUMNS = ("reference", "summary", "text")
TABLES = (".csv", ".tsv", ".xlsx", ".xls")
MOST_COMPARED = 10**8
"""Words of a prediction times words of its reference. A table of this size takes rouge-score a GB and half a minute."""


def score_pairs(
    predictions: Iterable[str], references: Iterable[str], tokenizer: WordTokenizer = "rouge"
) -> np.ndarray:
    """F1 ×100 of every pair, float64 [examples, measures], columns as ``MEASURES``. An empty prediction scores 0.

    Raises ValueError if the two differ in length, SourceError for a pair that is too long to be compared.
    """
    scorer, words = _scorer(tokenizer), word_tokenizer(tokenizer).tokenize
    rows = []
    for number, pair in enumerate(zip(predictions, references, strict=True), 1):
        prediction, reference = map(_by_line, pair)
        lengths = len(words(prediction)), len(words(reference))
        if lengths[0] * lengths[1] > MOST_COMPARED:
            raise SourceError(
                f"example {number}: a prediction of {lengths[0]:,} words and a reference of {lengths[1]:,} are too "
                f"long for ROUGE-L, whose work is their product; it may be {MOST_COMPARED:,}"
            )
        scores = scorer.score(reference, prediction)
        rows.append([100 * scores[measure].fmeasure for measure in MEASURES])
    return np.array(rows, dtype=np.float64).reshape(-1, len(MEASURES))


def bootstrap(values: np.ndarray, samples: int, seed: int, level: float = 0.95) -> np.ndarray:
    """Percentile bootstrap interval of the mean (Efron 1979): values [examples, measures] → [2, measures].

    All measures use the same resamples, and the same arguments give the same interval.
    """
    rng = np.random.default_rng(seed)
    count = len(values)
    means = np.stack([values[rng.integers(0, count, count)].mean(axis=0) for _ in range(samples)])
    tail = 50 * (1 - level)
    return np.percentile(means, [tail, 100 - tail], axis=0)


def paired(values: np.ndarray, against: np.ndarray, samples: int = 1000, seed: int = 0) -> dict[str, Any]:
    """``{"rouge1": {"difference", "low", "high"}, …, "examples"}``: the mean difference of two systems on the same
    examples, first minus second, each as from ``score_pairs``, with the interval of a paired bootstrap (Koehn 2004):
    both systems are scored on each resample of the examples.

    Raises ValueError if the two differ in shape.
    """
    if values.shape != against.shape:
        raise ValueError(f"{len(values)} examples cannot be paired with {len(against)}")
    differences = values - against  # the difference of the means over a resample is the mean of these
    means, (low, high) = differences.mean(axis=0), bootstrap(differences, samples, seed)
    figures = {
        measure: {"difference": round(float(mean), 4), "low": round(float(a), 4), "high": round(float(b), 4)}
        for measure, mean, a, b in zip(MEASURES, means, low, high, strict=True)
    }
    return {**figures, "examples": len(values)}


def summarize(
    values: np.ndarray,
    predictions: Sequence[str],
    references: Sequence[str],
    samples: int = 1000,
    seed: int = 0,
    tokenizer: WordTokenizer = "rouge",
) -> dict[str, Any]:
    """``{"rouge1": {"f1", "low", "high"}, …, "examples", "implementation", …}`` from ``score_pairs``, with the number
    of empty predictions, and for each side the number of texts of which the tokenizer keeps nothing or less than half
    (``is_unread``)."""
    assert len(values), "no example to score"
    means, (low, high) = values.mean(axis=0), bootstrap(values, samples, seed)
    scores = {
        measure: {"f1": round(float(f1), 4), "low": round(float(a), 4), "high": round(float(b), 4)}
        for measure, f1, a, b in zip(MEASURES, means, low, high, strict=True)
    }
    return {
        **scores,
        "examples": len(values),
        "implementation": IMPLEMENTATIONS[tokenizer],
        "tokenizer": tokenizer,
        "newlines": NEWLINES,
        "interval": {"level": 0.95, "method": "percentile bootstrap over examples", "samples": samples, "seed": seed},
        "empty": sum(not prediction.strip() for prediction in predictions),
        "unread": {
            side: sum(is_unread(text, tokenizer) for text in texts)
            for side, texts in (("predictions", predictions), ("references", references))
        },
    }


def score(
    predictions: Sequence[str],
    references: Sequence[str],
    samples: int = 1000,
    seed: int = 0,
    tokenizer: WordTokenizer = "rouge",
) -> dict[str, Any]:
    """``summarize(score_pairs(…))``. Raises SourceError for a pair that is too long to be compared."""
    values = score_pairs(predictions, references, tokenizer)
    return summarize(values, predictions, references, samples, seed, tokenizer)


def unread_note(scores: Mapping[str, Any]) -> str | None:
    """A sentence on the texts that the tokenizer could not read, from ``score``; None if it could read all."""
    unread = scores.get("unread", {})  # was not counted at first
    if not any(unread.values()):
        return None
    counts = " and ".join(f"{count:,} {side}" for side, count in unread.items() if count)
    return (
        f"of {counts} the tokenizer {scores['tokenizer']} keeps no word, or less than half of the letters and digits: "
        "their scores mean little"
    )


def score_files(
    predictions: str,
    references: str,
    samples: int = 1000,
    seed: int = 0,
    tokenizer: WordTokenizer = "rouge",
    against: str | None = None,
) -> dict[str, Any]:
    """Score files (paths or URLs): ``.txt`` (one example per line) or ``.jsonl``, also ``.gz``, or ``.parquet``.

    The predictions of another system, ``against``, add ``{"against": {"scores": …, "paired": …}}``: ``score`` of these,
    and ``paired`` of the first minus them. Raises SourceError, naming the file, when one cannot be read, has no fitting
    column, or the lengths differ.
    """
    expected = _texts(references, REFERENCE_COLUMNS)
    predicted = _predicted(predictions, references, len(expected))
    values = score_pairs(predicted, expected, tokenizer)
    scores = summarize(values, predicted, expected, samples, seed, tokenizer)
    if against is None:
        return scores
    others = _predicted(against, references, len(expected))
    other_values = score_pairs(others, expected, tokenizer)
    other_scores = summarize(other_values, others, expected, samples, seed, tokenizer)
    return scores | {"against": {"scores": other_scores, "paired": paired(values, other_values, samples, seed)}}


def _predicted(predictions: str, references: str, expected: int) -> list[str]:
    """The texts of a file of predictions, as many as there are references."""
    predicted = _texts(predictions, PREDICTION_COLUMNS)
    sides = storage.redact(predictions), storage.redact(references)
    if len(predicted) != expected:
        raise SourceError(
            f"{sides[0]} has {len(predicted)} predictions but {sides[1]} has {expected} references: "
            "line i of one must belong to line i of the other"
        )
    if not predicted:
        raise SourceError(f"{sides[0]} is empty: there is nothing to score")
    return predicted


def _by_line(text: str) -> str:
    return "\n".join(sentence for line in text.split("\n") for sentence in sentences(line))


@cache
def _scorer(tokenizer: WordTokenizer) -> RougeScorer:
    return RougeScorer(list(MEASURES), tokenizer=word_tokenizer(tokenizer))


def _texts(url: str, columns: Sequence[str]) -> list[str]:
    shown = storage.redact(url)
    if not url or not storage.exists(url):
        raise SourceError(f"{shown or 'a file without a name'} does not exist")
    name = url.lower().removesuffix(".gz")
    if name.endswith(TABLES):
        raise SourceError(f"{shown}: tables are not read; give text, one example per line, or jsonl or parquet")
    data = storage.read_bytes(url)
    try:
        if url.lower().endswith(".gz"):
            data = gzip.decompress(data)
        if name.endswith(".parquet"):
            return _parquet(shown, data, columns)
        lines = data.decode("utf-8-sig").split("\n")
    except (
        EOFError,
        zlib.error,
        UnicodeDecodeError,
        pa.ArrowInvalid,
        OSError,
    ) as error:  # gzip and Arrow raise OSError
        raise SourceError(f"{shown} cannot be read: {error}") from error
    # The last line break ends the last example and does not start an empty one.
    lines = lines[:-1] if lines[-1] == "" else lines
    if name.endswith((".jsonl", ".json")):
        return [_json_text(f"{shown} line {number}", line, columns) for number, line in enumerate(lines, 1)]
    return [line.removesuffix("\r") for line in lines]


def _parquet(shown: str, data: bytes, columns: Sequence[str]) -> list[str]:
    file = pq.ParquetFile(io.BytesIO(data))
    column = _column(shown, file.schema_arrow.names, columns)
    texts = file.read([column])[column].to_pylist()
    for row, text in enumerate(texts):
        if not isinstance(text, str):
            raise SourceError(f"{shown} row {row}: column {column} holds {short(repr(text))}, not a text")
    return texts


def _json_text(where: str, line: str, columns: Sequence[str]) -> str:
    if not line.strip():
        raise SourceError(f"{where} is empty: each line holds one example")
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise SourceError(f"{where} is not JSON: {error}") from error
    if isinstance(row, str):
        return row
    if not isinstance(row, dict):
        raise SourceError(f"{where}: expected an object or a text; each line holds one example")
    text = row[_column(where, row, columns)]
    if not isinstance(text, str):
        raise SourceError(f"{where}: expected a text, found {short(repr(text))}")
    return text


def _column(where: str, present: Iterable[str], columns: Sequence[str]) -> str:
    present = list(present)
    for column in columns:
        if column in present:
            return column
    found = short(", ".join(present) or "none")
    raise SourceError(f"{where} has none of the columns {', '.join(columns)}; it has {found}")
