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


def summarize(
    values: np.ndarray, samples: int = 1000, seed: int = 0, tokenizer: WordTokenizer = "rouge"
) -> dict[str, Any]:
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
        "implementation": IMPLEMENTATIONS[tokenizer],
        "tokenizer": tokenizer,
        "newlines": NEWLINES,
        "interval": {"level": 0.95, "method": "percentile bootstrap over examples", "samples": samples, "seed": seed},
    }


def score(
    predictions: Sequence[str],
    references: Sequence[str],
    samples: int = 1000,
    seed: int = 0,
    tokenizer: WordTokenizer = "rouge",
) -> dict[str, Any]:
    """``summarize(score_pairs(…))``, with the number of empty predictions, and for each side the number of texts of
    which the tokenizer keeps nothing or less than half (``is_unread``).

    Raises SourceError for a pair that is too long to be compared.
    """
    empty = sum(not prediction.strip() for prediction in predictions)
    sides = {"predictions": predictions, "references": references}
    unread = {side: sum(is_unread(text, tokenizer) for text in texts) for side, texts in sides.items()}
    values = score_pairs(predictions, references, tokenizer)
    return summarize(values, samples, seed, tokenizer) | {"empty": empty, "unread": unread}


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
) -> dict[str, Any]:
    """Score two files (paths or URLs): ``.txt`` (one example per line) or ``.jsonl``, also ``.gz``, or ``.parquet``.

    Raises SourceError, naming the file, when one cannot be read, has no fitting column, or the lengths differ.
    """
    predicted = _texts(predictions, PREDICTION_COLUMNS)
    expected = _texts(references, REFERENCE_COLUMNS)
    sides = storage.redact(predictions), storage.redact(references)
    if len(predicted) != len(expected):
        raise SourceError(
            f"{sides[0]} has {len(predicted)} predictions but {sides[1]} has {len(expected)} references: "
            "line i of one must belong to line i of the other"
        )
    if not predicted:
        raise SourceError(f"{sides[0]} is empty: there is nothing to score")
    return score(predicted, expected, samples, seed, tokenizer)


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
