"""ROUGE F1 ×100 by the ``rouge-score`` package with stemming, and bootstrap intervals of the mean over examples.

rougeL reads a text as one sequence and ignores line breaks. rougeLsum takes the union of the matches sentence by
sentence, so it depends on where sentences end: in both texts, at line breaks and at the ends of ``lead.sentences``.
"""

import gzip
import io
import json
import zlib
from collections.abc import Iterable, Sequence
from functools import lru_cache
from importlib.metadata import version
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from rouge_score.rouge_scorer import RougeScorer
from rouge_score.tokenizers import DefaultTokenizer

from bitlm import storage
from bitlm.errors import SourceError
from bitlm.evaluate.lead import sentences
from bitlm.evaluate.measures import MEASURES

IMPLEMENTATION = f"rouge-score {version('rouge-score')}, stemming"
NEWLINES = "rougeL ignores line breaks; for rougeLsum they and bitlm.evaluate.lead split sentences"
# Columns to look for, in this order. The pipeline's predictions.parquet can be given for both sides.
PREDICTION_COLUMNS = ("prediction", "text", "summary")
REFERENCE_COLUMNS = ("reference", "summary", "text")


def score_pairs(predictions: Iterable[str], references: Iterable[str]) -> np.ndarray:
    """F1 ×100 of every pair, float64 [examples, measures], columns as ``MEASURES``. An empty prediction scores 0.

    Raises ValueError if the two differ in length.
    """
    scorer = _scorer()
    rows = []
    for prediction, reference in zip(predictions, references, strict=True):
        scores = scorer.score(_by_line(reference), _by_line(prediction))
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


def summarize(values: np.ndarray, samples: int = 1000, seed: int = 0) -> dict[str, Any]:
    """``{"rouge1": {"f1", "low", "high"}, …, "examples", "implementation", …}`` from ``score_pairs``."""
    assert len(values), "no example to score"
    means, (low, high) = values.mean(axis=0), bootstrap(values, samples, seed)
    scores = {
        measure: {"f1": round(float(f1), 4), "low": round(float(a), 4), "high": round(float(b), 4)}
        for measure, f1, a, b in zip(MEASURES, means, low, high, strict=True)
    }
    return {
        **scores,
        "examples": len(values),
        "implementation": IMPLEMENTATION,
        "newlines": NEWLINES,
        "interval": {"level": 0.95, "method": "percentile bootstrap over examples", "samples": samples, "seed": seed},
    }


def score(predictions: Sequence[str], references: Sequence[str], samples: int = 1000, seed: int = 0) -> dict[str, Any]:
    """``summarize(score_pairs(…))``, with the number of empty predictions."""
    empty = sum(not prediction.strip() for prediction in predictions)
    return summarize(score_pairs(predictions, references), samples, seed) | {"empty": empty}


def score_files(predictions: str, references: str, samples: int = 1000, seed: int = 0) -> dict[str, Any]:
    """Score two files (paths or URLs): ``.txt`` (one example per line) or ``.jsonl``, also ``.gz``, or ``.parquet``.

    Raises SourceError, naming the file, when one cannot be read, has no fitting column, or the lengths differ.
    """
    predicted = _texts(predictions, PREDICTION_COLUMNS)
    expected = _texts(references, REFERENCE_COLUMNS)
    if len(predicted) != len(expected):
        raise SourceError(
            f"{predictions} has {len(predicted)} predictions but {references} has {len(expected)} references: "
            "line i of one must belong to line i of the other"
        )
    if not predicted:
        raise SourceError(f"{predictions} is empty: there is nothing to score")
    return score(predicted, expected, samples, seed)


def _by_line(text: str) -> str:
    return "\n".join(sentence for line in text.split("\n") for sentence in sentences(line))


class _CachedStems(DefaultTokenizer):
    """rouge-score's own tokenizer; a word is stemmed once, which halves the time."""

    def __init__(self) -> None:
        super().__init__(use_stemmer=True)
        self._stemmer.stem = lru_cache(maxsize=2**17)(self._stemmer.stem)


@lru_cache(maxsize=1)
def _scorer() -> RougeScorer:
    return RougeScorer(list(MEASURES), tokenizer=_CachedStems())


def _texts(url: str, columns: Sequence[str]) -> list[str]:
    if not storage.exists(url):
        raise SourceError(f"{url} does not exist")
    data = storage.read_bytes(url)
    name = url.lower()
    try:
        if name.endswith(".gz"):
            data, name = gzip.decompress(data), name[:-3]
        if name.endswith(".parquet"):
            return _parquet(url, data, columns)
        lines = data.decode("utf-8").split("\n")
    except (
        EOFError,
        zlib.error,
        UnicodeDecodeError,
        pa.ArrowInvalid,
        OSError,
    ) as error:  # gzip and Arrow raise OSError
        raise SourceError(f"{url} cannot be read: {error}") from error
    # The last line break ends the last example and does not start an empty one.
    lines = lines[:-1] if lines[-1] == "" else lines
    if name.endswith(".jsonl"):
        return [_json_text(url, number, line, columns) for number, line in enumerate(lines, 1)]
    return [line.removesuffix("\r") for line in lines]


def _parquet(url: str, data: bytes, columns: Sequence[str]) -> list[str]:
    file = pq.ParquetFile(io.BytesIO(data))
    column = _column(url, file.schema_arrow.names, columns)
    texts = file.read([column])[column].to_pylist()
    for row, text in enumerate(texts):
        if not isinstance(text, str):
            raise SourceError(f"{url} row {row}: column {column} holds {text!r}, not a text")
    return texts


def _json_text(url: str, number: int, line: str, columns: Sequence[str]) -> str:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise SourceError(f"{url} line {number} is not JSON: {error}") from error
    if isinstance(row, str):
        return row
    if not isinstance(row, dict):
        raise SourceError(f"{url} line {number}: expected an object or a text")
    text = row[_column(f"{url} line {number}", row, columns)]
    if not isinstance(text, str):
        raise SourceError(f"{url} line {number}: expected a text, found {text!r}")
    return text


def _column(where: str, present: Iterable[str], columns: Sequence[str]) -> str:
    present = list(present)
    for column in columns:
        if column in present:
            return column
    raise SourceError(f"{where} has none of the columns {', '.join(columns)}; it has {', '.join(present) or 'none'}")
