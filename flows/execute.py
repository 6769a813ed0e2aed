"""What all flows do: run one Prefect task for each selected step, in order."""

from importlib import import_module
from typing import Any, Literal

from bitlm.config import PipelineConfig
from bitlm.steps import STAGES
from bitlm_flows.selection import Selection, check
from bitlm_tasks.resources import check_steps
from bitlm_tasks.run import Verification, open_run

StageName = Literal[*STAGES]
Inputs = dict[str, str] | None
Summaries = list[dict[str, Any]]


def execute(config: PipelineConfig, root: str, selection: Selection, verification: Verification) -> Summaries:
    """Run the selected steps and return their summaries. Raises as ``check`` and ``check_steps``, before any work."""
    selected = check(config, root, selection)
    with open_run(config, root, verification) as run:
        check_steps(selected, run)
        outcomes = [import_module(STAGES[step.stage].task).task(step, run) for step in selected]
    return [outcome.summary() for outcome in outcomes]
