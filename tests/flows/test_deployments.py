"""The flows and prefect.yaml hold what the table of stages and the presets say."""

from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import yaml
from prefect.flows import load_flow_from_entrypoint

from bitlm.config import PRESETS
from bitlm.steps import STAGES
from bitlm_flows.stages import FLOWS

PROJECT = Path(__file__).parents[2]
DEPLOYMENTS: list[dict[str, Any]] = yaml.safe_load((PROJECT / "prefect.yaml").read_text())["deployments"]


def test_there_is_a_deployment_of_the_pipeline_for_each_preset_and_one_of_each_stage() -> None:
    pipelines = [(preset, "bitlm_flows.pipeline:pipeline", preset) for preset in PRESETS]
    stages = [("default", f"bitlm_flows.stages:{stage}", "tiny") for stage in STAGES]
    deployed = [(d["name"], d["entrypoint"], d["parameters"]["config"]["preset"]) for d in DEPLOYMENTS]
    assert deployed == pipelines + stages


@pytest.mark.parametrize("deployment", DEPLOYMENTS, ids=lambda d: f"{d['entrypoint']}-{d['name']}")
def test_a_deployment_names_a_flow_that_takes_its_parameters(deployment: dict[str, Any]) -> None:
    flow = load_flow_from_entrypoint(deployment["entrypoint"])
    assert flow.name == deployment["entrypoint"].partition(":")[2]
    parameters = flow.validate_parameters(deployment["parameters"])
    assert parameters["config"].preset == deployment["parameters"]["config"]["preset"]
    assert parameters["root"] == "artifacts"


@pytest.mark.parametrize("name", STAGES)
def test_each_stage_has_a_flow_and_a_task_of_its_name(name: str) -> None:
    assert (FLOWS[name].name, FLOWS[name].description) == (name, STAGES[name].purpose)
    assert import_module(STAGES[name].task).task.name == name
