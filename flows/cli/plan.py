"""``bitlm plan``: what a run would make and what it would reuse, without doing any of it."""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rich.table import Column, Table
from rich.text import Text

from bitlm.artifacts.ids import parse_id
from bitlm.artifacts.lineage import explain
from bitlm.artifacts.store import Store
from bitlm.config import PipelineConfig
from bitlm.steps import Step, find_artifact
from bitlm_flows.cli.options import NARROW, add_selection, configuration, inputs, stages
from bitlm_flows.cli.output import print_json
from bitlm_flows.selection import Selection, selected_steps
from bitlm_tasks.console import console as new_console


@dataclass(frozen=True)
class PlannedStep:
    """``artifact`` is the id of what would be reused; without one, ``reasons`` say why a new version would be made."""

    step: Step
    artifact: str | None
    reasons: list[str]

    def as_json(self) -> dict[str, Any]:
        parents = self.step.inputs.items()
        return {
            "step": self.step.key,
            "action": "reuse" if self.artifact else "make",
            "artifact": self.artifact,
            "fingerprint": self.step.fingerprint,
            "reasons": self.reasons,
            "inputs": {role: parent.key if isinstance(parent, Step) else parent.id for role, parent in parents},
        }


def add_parser(commands: Any) -> None:
    parser = commands.add_parser("plan", help="say what would run, what is reused, and why")
    add_selection(parser)
    parser.set_defaults(command=run)


def run(args: argparse.Namespace) -> int:
    config = configuration(args)
    steps = selected_steps(config, args.root, Selection(stages(args), inputs(args), upstream=True))
    planned = [_plan(step, Store(args.root)) for step in steps]
    if "tokens" in args.stages:
        _show_with_estimate(planned, config, args)
    elif args.json:
        print_json([one.as_json() for one in planned])
    else:
        _show(planned)
    return 0


def _show_with_estimate(planned: Sequence[PlannedStep], config: PipelineConfig, args: argparse.Namespace) -> None:
    from bitlm_flows.cli.estimate import (  # Ray and pyarrow take seconds to load
        add_estimate,
        estimate_tokens,
        show_estimate,
    )

    estimate = estimate_tokens([one.step for one in planned], config, args.root)
    if args.json:
        print_json(add_estimate([one.as_json() for one in planned], estimate))
    else:
        _show(planned)
        show_estimate(estimate)


def _plan(step: Step, store: Store) -> PlannedStep:
    record = find_artifact(step, store)
    if record is not None:
        return PlannedStep(step, record.id, [])
    return PlannedStep(step, None, explain(store.newest(step.stage, step.name), step))


def _show(planned: Sequence[PlannedStep]) -> None:
    """On a narrow terminal the reasons stand below the step, so that no column breaks a word."""
    console = new_console()
    narrow = console.width < NARROW
    table = Table(*(["step", "action"] if narrow else [Column("step", no_wrap=True), "action", "why"]))
    for one in planned:
        action = f"reuse v{parse_id(one.artifact).version}" if one.artifact else Text("make", "bold")
        if narrow:
            table.add_row("\n  ".join([one.step.key, *one.reasons]), action)
        else:
            table.add_row(one.step.key, action, "\n".join(one.reasons))
    console.print(table)
    to_make = sum(one.artifact is None for one in planned)
    console.print(f"{to_make} to make, {len(planned) - to_make} reused")
