"""``bitlm run``: run the pipeline, or some of its stages."""

import argparse
import json
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from bitlm.artifacts.lineage import tree
from bitlm.artifacts.store import Store
from bitlm.config import PipelineConfig
from bitlm.evaluate.table import Row, terminal, terminal_brier, terminal_differences, terminal_models
from bitlm.storage import redact
from bitlm.text import one_line
from bitlm_flows.cli.options import add_selection, configuration, inputs, stages
from bitlm_flows.cli.output import print_json
from bitlm_flows.environment import check_prefect_settings
from bitlm_flows.selection import Selection, check
from bitlm_tasks.console import console as new_console


def add_parser(commands: Any) -> None:
    parser = commands.add_parser("run", help="run the pipeline, or some of its stages")
    add_selection(parser)
    parser.add_argument(
        "--verify",
        choices=("full", "size"),
        default="full",
        help="check existing artifacts by every byte, or by sizes (readers check each file they open in any case)",
    )
    parser.set_defaults(command=run)


def run(args: argparse.Namespace) -> int:
    summaries = _run_flow(stages(args), inputs(args), configuration(args), args)
    if args.json:
        print_json(summaries if len(summaries) != 1 else summaries[0])
    else:
        _show(summaries, args.root)
    return 0


def _run_flow(
    stages: tuple[str, ...], inputs: dict[str, str], config: PipelineConfig, args: argparse.Namespace
) -> list[dict[str, Any]]:
    """One flow: that of the single stage, or the pipeline's. Mistakes are found before a server starts."""
    upstream = args.upstream or not stages
    check(config, args.root, Selection(stages, inputs, upstream))
    check_prefect_settings()
    # Prefect and Ray take seconds to load.
    from bitlm_flows.pipeline import pipeline
    from bitlm_flows.server import prefect_api
    from bitlm_flows.stages import FLOWS

    parameters = {"root": args.root, "inputs": inputs, "upstream": upstream, "verification": args.verify}
    with prefect_api():
        if len(stages) == 1:
            return FLOWS[stages[0]](config, **parameters)
        return pipeline(config, stages=list(stages), **parameters)


def _show(summaries: Sequence[Mapping[str, Any]], root: str) -> None:
    """What was made or reused; for a report also its ROUGE table, its lineage and its path."""
    console = new_console()
    table = Table(*(Column(name, no_wrap=True) for name in ("artifact", "", "made in")))
    for summary in summaries:
        state = "reused" if summary["reused"] else "made"
        table.add_row(summary["id"], state, f"{summary['seconds']:.1f} s")
    console.print(table)
    console.print(f"artifacts in {one_line(redact(Store(root).root))}", soft_wrap=True)
    for summary in summaries:
        if summary["id"].startswith("report/"):
            _show_report(summary["id"], Store(root), console)


def _show_report(artifact_id: str, store: Store, console: Console) -> None:
    record = store.load(artifact_id)
    results = json.loads(store.read_bytes(record, "results.json"))
    rows = [Row.model_validate(row) for row in results["rows"]]
    console.print(terminal(rows))
    if results["differences"]:
        console.print(terminal_differences(rows, results["differences"]))
    if results["brier"]:
        console.print(terminal_brier(rows, results["brier"]))
    if results["efforts"]:
        console.print(terminal_models(results["efforts"], results["validation"]))
    console.print("\nlineage", style="bold")
    console.print(tree(store, record), soft_wrap=True)
    url = one_line(redact(store.url(record.id, "report.html")))
    console.print(Text.assemble("\n", ("report", "bold"), f"  {url}"), soft_wrap=True)
