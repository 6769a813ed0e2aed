"""Ancestors of an artifact, and how two artifacts (or one and a step that would make the next version) differ."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from bitlm.artifacts.record import Record
from bitlm.artifacts.store import Store
from bitlm.errors import ArtifactError
from bitlm.text import one_line, short

ABSENT = "(absent)"
SHOWN_CHANGES = 12


@dataclass(frozen=True)
class FieldChange:
    """One dotted key, for example ``pretrain.steps``; its value is ``(absent)`` on a side that lacks it."""

    key: str
    old: Any
    new: Any

    def __str__(self) -> str:
        return f"{self.key}: {_short(self.old)} → {_short(self.new)}"


class Step(Protocol):
    """What would be made. Each input has a fingerprint, and an ``id`` (a record) or a ``key`` (another step)."""

    @property
    def stage(self) -> str: ...
    @property
    def format(self) -> int: ...
    @property
    def identity(self) -> dict[str, Any]: ...
    @property
    def inputs(self) -> Mapping[str, Any]: ...


def lineage(store: Store, record: Record) -> list[Record]:
    """All ancestors, inputs before their users, and the record itself last.

    Raises ArtifactError where an input is missing or is no longer the one that was used.
    """
    ordered: dict[str, Record] = {}

    def visit(descendant: Record) -> None:
        if descendant.id not in ordered:
            for parent in parents(store, descendant).values():
                visit(parent)
            ordered[descendant.id] = descendant

    visit(record)
    return list(ordered.values())


def parents(store: Store, record: Record) -> dict[str, Record]:
    """Role → record of the direct inputs; raises as ``lineage`` does."""
    by_role = {}
    for role, entry in record.inputs.items():
        parent = store.load(entry.id)
        if parent.fingerprint != entry.fingerprint:
            raise ArtifactError(
                f"{record.id} was made from {entry.id} with fingerprint {entry.fingerprint[:12]}…, "
                f"but what is there now has {parent.fingerprint[:12]}…; make {record.stage}/{record.name} again"
            )
        by_role[role] = parent
    return by_role


def tree(store: Store, record: Record) -> str:
    """The record with its inputs below it, a line each with sizes and key metrics; repeated ones are only named."""
    return "\n".join(_branch(store, record, "", "", "", set()))


def diff(a: Record, b: Record) -> list[FieldChange]:
    """Differences in what two artifacts were computed from: identity, inputs (by fingerprint), format."""
    return _compare(_fields(a), _fields(b))


def explain(newest: Record | None, step: Step) -> list[str]:
    """Why ``step`` makes a new version instead of reusing the newest one: a line per field."""
    if newest is None:
        return ["there is none yet"]
    changes = [str(change) for change in _compare(_fields(newest), _fields(step))]
    if not changes:
        return ["the same content, but at another place"]
    hidden = len(changes) - SHOWN_CHANGES
    return changes if hidden <= 0 else [*changes[:SHOWN_CHANGES], f"and {hidden} more"]


def human_bytes(count: int) -> str:
    value = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if value < 1000:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.1f} TB"


def key_metrics(record: Record, count: int = 3) -> str:
    """The first few figures among the metrics."""
    figures = [(key, value) for key, value in record.metrics.items() if isinstance(value, int | float)]
    return ", ".join(
        f"{key} {value:,}" if isinstance(value, int) else f"{key} {value:.4g}" for key, value in figures[:count]
    )


def _branch(store: Store, record: Record, lead: str, indent: str, role: str, shown: set[str]) -> Iterator[str]:
    label = f"{role}: {record.id}" if role else record.id
    if record.id in shown:
        yield f"{lead}{label} (above)"
        return
    shown.add(record.id)
    yield f"{lead}{label} · {len(record.files)} files, {human_bytes(record.bytes)}" + (
        f" · {m}" if (m := key_metrics(record)) else ""
    )
    inputs = list(parents(store, record).items())
    for i, (input_role, parent) in enumerate(inputs, 1):
        branch, continuation = ("└─ ", "   ") if i == len(inputs) else ("├─ ", "│  ")
        yield from _branch(store, parent, indent + branch, indent + continuation, input_role, shown)


def _fields(source: Record | Step) -> dict[str, tuple[Any, Any]]:
    """Dotted key → (value to compare, value to show)."""
    fields: dict[str, tuple[Any, Any]] = {f"{source.stage}.format": (source.format, source.format)}
    fields |= {key: (_typed(value), value) for key, value in _flat(source.identity, source.stage)}
    for role, entry in source.inputs.items():
        label = getattr(entry, "id", None) or entry.key
        fields[f"inputs.{role}"] = (entry.fingerprint, f"{label} ({entry.fingerprint[:8]})")
    return fields


def _flat(value: Any, key: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping) and value:
        for name, item in value.items():
            yield from _flat(item, f"{key}.{name}")
    elif isinstance(value, list | tuple) and any(isinstance(item, Mapping) for item in value):
        for i, item in enumerate(value):
            yield from _flat(item, f"{key}.{i}")
    else:
        yield key, list(value) if isinstance(value, tuple) else value


def _typed(value: Any) -> Any:
    """With its type, because 1, 1.0 and true are three values in a fingerprint."""
    return [_typed(item) for item in value] if isinstance(value, list) else (type(value).__name__, value)


def _compare(old: dict[str, tuple[Any, Any]], new: dict[str, tuple[Any, Any]]) -> list[FieldChange]:
    missing = (ABSENT, ABSENT)
    keys = [*old, *(key for key in new if key not in old)]
    sides: Sequence[tuple[str, tuple[Any, Any], tuple[Any, Any]]] = [
        (k, old.get(k, missing), new.get(k, missing)) for k in keys
    ]
    return [FieldChange(key, before[1], after[1]) for key, before, after in sides if before[0] != after[0]]


def _short(value: Any) -> str:
    return short(one_line(value if isinstance(value, str) else repr(value)), 60)
