"""What the command line prints for people, on standard output."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from bitlm.artifacts.lineage import tree
from bitlm.artifacts.store import Store
from bitlm.evaluate.table import MEASURES, TITLES, Row, terminal
from flows.plan import Planned

STDOUT = Console()


def show_run(summaries: Sequence[Mapping[str, Any]], root: str) -> None:
    """What was made or reused; and where a report is among it, its table, its path and its lineage."""
    table = Table(title="artifacts", title_justify="left")
    for column in ("artifact", "", "made in", "path"):
        table.add_column(column, overflow="fold")
    for summary in summaries:
        table.add_row(
            summary["id"], "reused" if summary["reused"] else "made", f"{summary['seconds']:.1f} s", summary["path"]
        )
    STDOUT.print(table)
    for summary in summaries:
        if summary["id"].startswith("report/"):
            _show_report(summary["id"], Store(root))


def _show_report(artifact_id: str, store: Store) -> None:
    record = store.load(artifact_id)
    results = json.loads(store.read_bytes(record, "results.json"))
    STDOUT.print(terminal([Row.model_validate(row) for row in results["rows"]]))
    STDOUT.print("\nlineage", style="bold")
    STDOUT.print(tree(store, record), highlight=False, markup=False, soft_wrap=True)
    STDOUT.print(f"\n[bold]report[/]  {store.url(record.id, 'report.html')}", highlight=False, soft_wrap=True)


def show_plan(planned: Sequence[Planned]) -> None:
    table = Table(title="plan", title_justify="left")
    for column in ("step", "action", "why"):
        table.add_column(column, overflow="fold")
    for step in planned:
        table.add_row(step.step, f"reuse {step.reuse}" if step.reuse else "[bold]make[/]", "\n".join(step.reasons))
    STDOUT.print(table)
    to_make = sum(step.reuse is None for step in planned)
    STDOUT.print(f"{to_make} to make, {len(planned) - to_make} reused", highlight=False)


def show_scores(scores: Mapping[str, Any]) -> None:
    table = Table(title=f"{scores['examples']:,} examples · {scores['implementation']}", title_justify="left")
    for column in ("measure", "F1 ×100", "95% interval"):
        table.add_column(column)
    for measure in MEASURES:
        score = scores[measure]
        table.add_row(TITLES[measure], f"{score['f1']:.2f}", f"{score['low']:.2f} to {score['high']:.2f}")
    STDOUT.print(table)
