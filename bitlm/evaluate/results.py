"""The results of a pipeline, collected from its artifacts once for the page, the Markdown and the JSON of a report."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from bitlm.artifacts.lineage import lineage
from bitlm.artifacts.record import Record
from bitlm.artifacts.store import Store
from bitlm.config import ReportConfig
from bitlm.evaluate import brier_rows, choices, differences, effort, rouge, table
from bitlm.evaluate.predictions import costs, read

FEW_EXAMPLES = 1000
KINDS = {
    "chain": "exact, token by token",
    "bound": "upper bound",
    "exact": "exact",
}
"""Of the validation figure, by ``validation_kind``."""
CURVES = ("loss", "validation_nats_per_token")
Results = dict[str, Any]


@dataclass(frozen=True)
class Subjects:
    """The artifacts that a report is about. ``evaluations`` and ``trained`` are in the order of the report."""

    evaluations: list[Record]
    trained: list[Record]
    """Pretrain and finetune artifacts."""
    ancestry: list[Record]
    """All of these and whatever they were made from, inputs before their users."""


def subjects(store: Store, evaluations: list[Record], trained: list[Record]) -> Subjects:
    """Raises ArtifactError as ``lineage``."""
    ancestry = {one.id: one for record in [*trained, *evaluations] for one in lineage(store, record)}
    return Subjects(evaluations, trained, list(ancestry.values()))


def collect(store: Store, subjects: Subjects, config: ReportConfig, preset: str) -> Results:
    """What the report says, as plain JSON values. Raises ArtifactError if a file is damaged."""
    evaluations, ancestry = subjects.evaluations, subjects.ancestry
    scores = [json.loads(_text(store, record, "scores.json")) for record in evaluations]
    predictions = [_table(store, record, "predictions.parquet") for record in evaluations]
    by_id = {record.id: record for record in ancestry}
    kinds = [choices.of_system(record, by_id) for record in evaluations]
    rows = table.rows(list(zip(evaluations, scores, kinds, strict=True)))
    curves = [_curves(store, record) for record in subjects.trained]
    efforts = effort.of_trainings(subjects.trained, by_id)
    return {
        "title": config.title,
        "preset": preset,
        "implementation": scores[0]["implementation"],
        "newlines": scores[0]["newlines"],
        "rows": [row.model_dump(mode="json") for row in rows],
        "differences": differences.to_lm_head(list(zip(evaluations, scores, predictions, strict=True))),
        "brier": brier_rows.rows(
            [
                (record, found["brier"], _table(store, record, "continuations.parquet"))
                for record, found in zip(evaluations, scores, strict=True)
                if "brier" in found
            ]
        ),
        "outputs": [
            _outputs(record, predicted)
            for record, predicted in zip(evaluations, predictions, strict=True)
            if "model" in record.inputs
        ],
        "efforts": [{"system": _model_label(by_id[found["artifact"]]), **found} for found in efforts],
        "validation": [line for curve in curves if (line := _last_validation(curve))],
        "curves": curves,
        "examples": _examples([_full_label(record) for record in evaluations], predictions, config.examples),
        "notes": _notes(evaluations, scores, ancestry) + effort.notes(efforts),
        "artifacts": [_artifact(record) for record in ancestry],
        "versions": _versions(ancestry),
    }


def _artifact(record: Record) -> dict[str, Any]:
    return {
        "id": record.id,
        "fingerprint": record.fingerprint,
        "inputs": [entry.id for entry in record.inputs.values()],
        "finished": f"{record.finished:%Y-%m-%d %H:%M:%S}",
        "seconds": record.seconds,
        "identity": record.identity,
    }


def _text(store: Store, record: Record, path: str) -> str:
    return store.read_bytes(record, path).decode()


def _table(store: Store, record: Record, name: str) -> pa.Table:
    with store.local_file(record, name) as path:
        return read(path)


def _full_label(record: Record) -> str:
    return " · ".join(filter(None, (table.system_label(record), choices.sampler(record))))


def _model_label(record: Record) -> str:
    return f"{table.HEADS[record.identity['head']]}, {table.TRAININGS[record.stage]}"


def _curves(store: Store, record: Record) -> dict[str, Any]:
    """From ``metrics.jsonl``: ``[[step, value], …]`` by name, and the last line of validation figures whole."""
    lines = [json.loads(line) for line in _text(store, record, "metrics.jsonl").splitlines()]
    validations = [line for line in lines if "validation_nats_per_token" in line]
    return {
        "artifact": record.id,
        "stage": record.stage,
        "head": record.identity["head"],
        "system": _model_label(record),
        "last_validation": validations[-1] if validations else None,
        **{name: [[line["step"], line[name]] for line in lines if line.get(name) is not None] for name in CURVES},
    }


def _last_validation(curve: Mapping[str, Any]) -> dict[str, Any] | None:
    line = curve["last_validation"]
    if line is None:
        return None
    kind, nats = line["validation_kind"], line["validation_nats_per_token"]
    return {
        "system": curve["system"],
        "artifact": curve["artifact"],
        "step": line["step"],
        "kind": KINDS[kind],
        "nats_per_token": nats,
        "bound_nats_per_token": line.get("validation_bound_nats_per_token", nats if kind == "bound" else None),
        "standard_error": line.get("validation_standard_error"),
        "bits_per_byte": line.get("bits_per_byte"),
        "slots": line.get("validation_nats_per_slot"),
    }


def _outputs(record: Record, predictions: pa.Table) -> dict[str, Any]:
    texts = predictions["text"].to_pylist()
    return {
        "system": table.system_label(record),
        "sampler": choices.sampler(record),
        "artifact": record.id,
        **costs(predictions),
        "seconds": record.seconds,
        "mean_words": sum(len(text.split()) for text in texts) / len(texts),
        "empty": sum(not text for text in texts),
    }


def _examples(systems: Sequence[str], predictions: Sequence[pa.Table], count: int) -> list[dict[str, Any]]:
    """``count`` evenly spaced rows of those that all systems have."""
    by_row = [{line["row"]: line for line in predicted.to_pylist()} for predicted in predictions]
    shared = sorted(set.intersection(*(set(lines) for lines in by_row)))
    count = min(count, len(shared))
    chosen = [shared[index * len(shared) // count] for index in range(count)]
    return [
        {
            "row": row,
            "id": by_row[0][row]["id"],
            "reference": by_row[0][row]["reference"],
            "texts": [{"system": s, "text": lines[row]["text"]} for s, lines in zip(systems, by_row, strict=True)],
        }
        for row in chosen
    ]


def _notes(evaluations: Sequence[Record], scores: Sequence[Mapping[str, Any]], ancestry: Sequence[Record]) -> list[str]:
    heads = [record for record in ancestry if record.stage == "pretrain" and record.identity["head"] == "diffusion"]
    notes = [choices.note(record) for record in heads]
    counts = {score["examples"] for score in scores}
    if min(counts) < FEW_EXAMPLES:
        notes.append(f"Figures rest on {range_of(counts)} examples: compare the intervals, not the second decimal.")
    if len(counts) > 1 or len({record.inputs["corpus"].fingerprint for record in evaluations}) > 1:
        notes.append("The systems were not scored on the same examples: their rows cannot be compared.")
    empty = sum(score["empty"] for score in scores)
    if empty:
        notes.append(f"{empty:,} outputs are empty; they count as examples and score 0.")
    unread = [(record.id, rouge.unread_note(score)) for record, score in zip(evaluations, scores, strict=True)]
    notes += [f"{artifact}: {note}." for artifact, note in unread if note]
    dirty = [record.id for record in ancestry if record.code.get("dirty")]
    if dirty:
        notes.append(f"{len(dirty)} of {len(ancestry)} artifacts were made by code with uncommitted changes.")
    if len({_code(record) for record in ancestry}) > 1:
        notes.append("The artifacts were made by different versions of the code; see Versions.")
    return notes


def _code(record: Record) -> str:
    commit = record.code.get("commit")
    changed = " with changes" if record.code.get("dirty") else ""
    return f"{record.code['version']}" + (f" (commit {commit[:12]}{changed})" if commit else "")


def _versions(ancestry: Iterable[Record]) -> dict[str, str]:
    """Each package with its version, or with all its versions if the artifacts differ."""
    versions: dict[str, dict[str, None]] = {}  # dictionaries as ordered sets
    for record in ancestry:
        for package, version in {"bitlm": _code(record), **record.packages}.items():
            versions.setdefault(package, {})[version] = None
    return {package: ", ".join(different) for package, different in versions.items()}


def range_of(counts: set[int]) -> str:
    """One number, or the least and the greatest."""
    return f"{min(counts):,}" if len(counts) == 1 else f"{min(counts):,} to {max(counts):,}"
