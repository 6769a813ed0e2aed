"""Whether Ray has room for what a stage starts: processes that find none wait for ever."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import ray
from ray._private.state import state

from bitlm.config import EvaluateConfig, TrainExecution
from bitlm.errors import ConfigError
from bitlm.steps import Step, find_artifact
from bitlm_tasks.session import cluster_address

if TYPE_CHECKING:  # workers, which load this module, need no Prefect
    from bitlm_tasks.run import Run

Node = dict[str, float]
"""The resources of a node by Ray's names, in all."""


@dataclass(frozen=True)
class Demand:
    """What the configuration's section ``settings`` asks for: ``count`` processes of a ``kind`` at once, each with so
    many CPUs and GPUs of one node."""

    settings: str
    kind: str
    count: int
    cpus: int
    gpus: int

    @classmethod
    def of_training(cls, stage: str, execution: TrainExecution) -> "Demand":
        return cls(
            f"{stage}.execution", "worker", execution.num_workers, execution.cpus_per_worker, int(execution.use_gpu)
        )

    @classmethod
    def of_evaluation(cls, config: EvaluateConfig) -> "Demand":
        """One actor: others join it where there is room, and each takes no more CPUs than its node has."""
        return cls("evaluate.execution", "actor", 1, 0, int(config.execution.use_gpu))

    def each(self) -> dict[str, int]:
        return {name: amount for name, amount in (("CPU", self.cpus), ("GPU", self.gpus)) if amount}

    def room(self, nodes: Iterable[Node], *names: str) -> int:
        """How many fit on the nodes, by the named resources alone."""
        each = self.each()
        return sum(min(int(node.get(name, 0) // each[name]) for name in names) for node in nodes)


def check_steps(steps: Iterable[Step], run: "Run") -> None:
    """``check_room`` for all steps that are to be made. Starts Ray if one of them needs it."""
    demands: list[Demand] = []
    for step in steps:
        if step.stage in ("pretrain", "finetune"):
            demand = Demand.of_training(step.stage, getattr(run.config, step.stage).execution)
        elif step.stage == "evaluate" and step.identity["system"] != "lead":
            demand = Demand.of_evaluation(run.config.evaluate)
        else:
            continue
        if demand.each() and demand not in demands and find_artifact(step, run.store) is None:
            demands.append(demand)
    for demand in demands:
        run.ray()
        check_room(demand)


def check_room(demand: Demand) -> None:
    """Raises ConfigError if the nodes of Ray have too little room. Where an autoscaler may add nodes, the stage waits
    for them."""
    each = demand.each()
    if not each or state.get_max_resources_from_cluster_config() is not None:
        return
    nodes = living_nodes()
    room = demand.room(nodes, *each)
    if room >= demand.count:
        return
    asked = " and ".join(f"{amount} {name}" for name, amount in each.items())
    there = " and ".join(f"{sum(node.get(name, 0) for node in nodes):g} {name}" for name in each)
    place = "this machine"
    if cluster_address():
        place = f"the Ray cluster of {len(nodes)} node{_s(len(nodes))}"
    raise ConfigError(
        f"{demand.settings} asks for {demand.count} {demand.kind}{_s(demand.count)} with {asked} each, {place} has "
        f"{there}, room for {room}: {_remedy(demand, nodes)}"
    )


def living_nodes() -> list[Node]:
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def _remedy(demand: Demand, nodes: list[Node]) -> str:
    short = [name for name in demand.each() if demand.room(nodes, name) < demand.count] or ["CPU"]
    lower = [f"num_{demand.kind}s"] * (demand.count > 1) + [f"cpus_per_{demand.kind}"] * ("CPU" in short)
    remedies = [f"lower {' or '.join(lower)}"] * bool(lower) + ["set use_gpu=false"] * ("GPU" in short)
    return ", ".join(remedies + ["or add nodes"] * bool(cluster_address()))


def _s(count: int) -> str:
    return "s" * (count != 1)
