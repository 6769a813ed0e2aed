import re
from collections.abc import Callable
from types import SimpleNamespace

import pytest
import ray
from ray._private.state import state

from bitlm.config import configure
from bitlm.errors import ConfigError
from bitlm.steps import steps
from bitlm_flows.execute import execute
from bitlm_flows.selection import Selection
from bitlm_tasks.evaluate import actor_cpus
from bitlm_tasks.resources import Demand, check_room, check_steps

Node = dict[str, float]
BIG, SMALL, GPUS = {"CPU": 16.0}, {"CPU": 2.0, "memory": 1e9}, {"CPU": 4.0, "GPU": 4.0}


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Makes Ray tell of these nodes, of a dead one beside them, and of an autoscaler if there is one."""

    def tell(*nodes: Node, grows: bool = False, joined: bool = False) -> None:
        living = [{"Alive": True, "Resources": node} for node in nodes]
        monkeypatch.setattr(ray, "nodes", lambda: [*living, {"Alive": False, "Resources": {"CPU": 99.0, "GPU": 99.0}}])
        monkeypatch.setattr(state, "get_max_resources_from_cluster_config", lambda: {"CPU": 0} if grows else None)
        monkeypatch.setenv("RAY_ADDRESS", "192.0.2.9:6379" if joined else "")

    return tell


@pytest.mark.parametrize(
    ("demand", "nodes", "message"),
    [
        (
            (2, 3, 0),
            [SMALL],
            "2 workers with 3 CPU each, this machine has 2 CPU, room for 0: lower num_workers or cpus_…",
        ),
        (
            (1, 2, 1),
            [SMALL],
            "1 worker with 2 CPU and 1 GPU each, this machine has 2 CPU and 0 GPU, …: set use_gpu=false",
        ),
        ((8, 8, 1), [SMALL], "…: lower num_workers or cpus_per_worker, set use_gpu=false"),
        ((5, 1, 1), [{"CPU": 64.0, "GPU": 4.0}], "…, room for 4: lower num_workers, set use_gpu=false"),
        # Enough CPUs in all, but no node has as many as one worker needs, or they are not where the GPUs are.
        ((1, 4, 0), [SMALL] * 4, "… has 8 CPU, room for 0: lower cpus_per_worker"),
        ((2, 8, 1), [BIG, GPUS], "… has 20 CPU and 4 GPU, room for 0: lower num_workers or cpus_per_worker"),
        ((2, 3, 1), [BIG, GPUS], "… has 20 CPU and 4 GPU, room for 1: lower num_workers or cpus_per_worker"),
    ],
)
def test_workers_without_room_are_refused(demand: tuple, nodes: list[Node], message: str, cluster: Callable) -> None:
    cluster(*nodes)
    with pytest.raises(ConfigError) as caught:
        check_room(Demand("pretrain.execution", "worker", *demand))
    pattern = re.escape(f"pretrain.execution asks for {message}").replace("…", ".*")
    assert re.fullmatch(pattern, str(caught.value))


def test_workers_with_room_start(cluster) -> None:
    cluster(BIG, SMALL, GPUS)
    for demand in ((4, 1, 1), (1, 4, 1), (22, 1, 0), (10, 2, 0), (1, 16, 0)):
        check_room(Demand("pretrain.execution", "worker", *demand))


def test_a_cluster_may_get_more_nodes(cluster) -> None:
    demand = Demand("pretrain.execution", "worker", 2, 1, 1)
    cluster(SMALL, SMALL, joined=True)
    with pytest.raises(ConfigError, match=r"the Ray cluster of 2 nodes has 4 CPU and 0 GPU.* or add nodes$"):
        check_room(demand)
    cluster(SMALL, grows=True)  # by itself, and then the training waits
    check_room(demand)


def test_an_evaluation_needs_one_gpu_for_all_its_actors(cluster) -> None:
    config = configure("8b", []).evaluate
    cluster(BIG, GPUS)
    check_room(Demand.of_evaluation(config))
    cluster(BIG)
    with pytest.raises(ConfigError, match=r"^evaluate\.execution asks for 1 actor with 1 GPU each, this machine has 0"):
        check_room(Demand.of_evaluation(config))
    cluster()
    check_room(Demand.of_evaluation(configure("tiny", []).evaluate))


@pytest.mark.parametrize(
    ("asked", "use_gpu", "nodes", "expected"),
    [
        (4, False, [{"CPU": 8.0}], 4),
        (8, False, [{"CPU": 8.0}], 7),
        (2, False, [{"CPU": 1.0}], 0.5),
        (4, False, [SMALL] * 4, 2),
        (8, True, [BIG, GPUS], 4),
        (8, True, [BIG, {"GPU": 1.0}], 0),
    ],
)
def test_an_actor_asks_for_no_more_cpus_than_a_node_has(asked, use_gpu, nodes, expected) -> None:
    execution = [f"evaluate.execution.cpus_per_actor={asked}", f"evaluate.execution.use_gpu={str(use_gpu).lower()}"]
    assert actor_cpus(configure("tiny", execution).evaluate, nodes) == expected


def test_all_steps_that_are_to_be_made_are_looked_at(cluster) -> None:
    config = configure("tiny", ["evaluate.execution.use_gpu=true", "finetune.execution.cpus_per_worker=3"])
    started = []
    made: set[str] = set()
    store = SimpleNamespace(find=lambda stage, name, fingerprint: f"{stage}/{name}" in made or None)
    run = SimpleNamespace(config=config, store=store, ray=lambda: started.append(1))
    every = steps(config)
    cluster(SMALL)
    with pytest.raises(ConfigError, match=r"^finetune\.execution asks for 1 worker with 3 CPU"):
        check_steps(every, run)
    made |= {step.key for step in every if step.stage == "finetune"}
    with pytest.raises(ConfigError, match=r"^evaluate\.execution asks for 1 actor with 1 GPU"):
        check_steps(every, run)
    made |= {step.key for step in every if step.stage == "evaluate" and step.identity["system"] != "lead"}
    check_steps(every, run)
    started.clear()
    check_steps([step for step in every if step.stage not in ("pretrain", "finetune")], run)
    assert not started, "Ray was started for nothing"


@pytest.mark.usefixtures("ray_session")
def test_a_run_without_room_makes_nothing(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    config = configure("tiny", ["finetune.execution.use_gpu=true", "finetune.execution.num_workers=2"])
    with pytest.raises(ConfigError, match=r"^finetune\.execution asks for 2 workers with 2 CPU and 1 GPU each"):
        execute(config, str(tmp_path / "root"), Selection((), {}, True), "full")
    assert not any((tmp_path / "root").iterdir())
