"""Fifty deaths during one job: of processes in the middle of a write, of Ray workers, of nodes, of drivers."""

import json
import multiprocessing
import random
import signal
from collections.abc import Callable, Iterator
from multiprocessing.process import BaseProcess
from operator import itemgetter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray
from ray.cluster_utils import Cluster

from bitlm.artifacts.record import RECORD_FILE
from bitlm.artifacts.store import Store
from bitlm.config import configure
from bitlm.data.shards.encode import encode_unit
from bitlm.data.shards.units import Job, Unit, UnitRecord
from bitlm.data.shards.units import plan as plan_units
from bitlm.data.sources.corpus import load_corpus
from bitlm.steps import STAGES, steps
from tests.tasks.data_stages import digests, sha256
from tests.tasks.dying import drive, encode_or_die

UNITS = 40
ALONE, ALONE_DEATHS = 24, 36  # units that are first worked on without Ray, and how often their processes die
WORKER_DEATHS = 9  # of workers of Ray, in the other units
DRIVER_DEATHS = (15, 23, 31)  # when so many units are done
NODE_DEATHS = (18, 27)  # when so many units have been made
WORDS = ["the", "value", "of", "an", "item", "is", "returned", "where", "none", "was", "given", "before", "after"]

FORKS = multiprocessing.get_context("forkserver")


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    ray.shutdown()  # this process's own would be confused by the cluster's end
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "object_store_memory": 10**8})
    for _ in range(2):
        cluster.add_node(num_cpus=1, object_store_memory=10**8)
    yield cluster
    cluster.shutdown()


@pytest.fixture
def settings(tmp_path: Path) -> list[str]:
    rng = random.Random(0)
    for number in range(5):
        texts = [" ".join(rng.choices(WORDS, k=rng.randrange(5, 60))) + f" {i}" for i in range(800)]
        table = pa.table({"text": texts, "id": [f"{number}-{i}" for i in range(800)]})
        (tmp_path / "source").mkdir(exist_ok=True)
        pq.write_table(table, tmp_path / "source" / f"{number}.parquet", row_group_size=100, compression=None)
    for split in ("train", "validation", "test"):
        (tmp_path / "summaries").mkdir(exist_ok=True)
        table = pa.table({"document": [f"{split} document"], "summary": ["of it"], "id": ["1"]})
        pq.write_table(table, tmp_path / "summaries" / f"{split}.parquet")
    return [
        f"corpus.source={tmp_path / 'source'}",
        f"corpus.summaries={tmp_path / 'summaries'}",
        "corpus.validation_fraction=0.1",
        "tokenizer.vocab_size=300",
        "tokens.unit_bytes=1",
    ]


def start(function: Callable, *arguments: Any) -> BaseProcess:
    process = FORKS.Process(target=function, args=arguments)
    process.start()
    return process


def run(function: Callable, *arguments: Any) -> int:
    """The exit code; the signal, negative, that ended the process."""
    process = start(function, *arguments)
    process.join()
    return process.exitcode


def plan_of_units(root: Path, out: str) -> tuple[list[Unit], Job]:
    """The units of the tokens stage, and where they write to."""
    store = Store(str(root))
    corpus, tokenizer = store.load("corpus/tiny"), store.load("tokenizer/tiny")
    job = Job(store.root, out, STAGES["tokens"].format, corpus, tokenizer, "text", "id", 0.1)
    units = plan_units(load_corpus(store, corpus).files, 1)
    assert len(units) == UNITS
    return units, job


def undisturbed(root: Path, out: Path) -> tuple[dict[str, str], list[UnitRecord]]:
    """path → sha256 of what the units make of the same artifacts, one after the other in this process, and records."""
    units, job = plan_of_units(root, str(out))
    records = [encode_unit(unit, job).record for unit in units]
    files = [path for path in out.rglob("*") if path.is_file()]
    return {str(path.relative_to(out)): sha256(path) for path in files}, records


def plan_deaths(plan: Path) -> None:
    plan.mkdir()
    rng = random.Random(1)
    for units, deaths in ((range(ALONE), ALONE_DEATHS), (range(ALONE, UNITS), WORKER_DEATHS)):
        for name in rng.sample([f"{unit}-{number}" for unit in units for number in (0, 1)], deaths):
            (plan / name).touch()
    for done in DRIVER_DEATHS:
        (plan / f"driver-{done}").touch()


def die_alone(root: Path, plan: Path, settings: list[str]) -> None:
    """Work on the first units without Ray: each dies as often as planned, and every second one is then finished."""
    step = next(step for step in steps(configure("tiny", settings)) if step.stage == "tokens")
    work = Store(str(root)).begin(step.stage, step.name, step.fingerprint)
    units, job = plan_of_units(root, work.out)
    for unit in units[:ALONE]:
        for _ in list(plan.glob(f"{unit.index}-*")):
            assert run(encode_or_die, unit, job, plan) == -signal.SIGKILL
        if unit.index % 2:
            assert run(encode_or_die, unit, job, plan) == 0
    work.release()


def die_on(cluster: Cluster, root: Path, plan: Path, settings: list[str]) -> None:
    """Start the driver until it comes to its end, and take nodes away meanwhile."""
    rng = random.Random(2)
    nodes = list(NODE_DEATHS)
    for _ in range(20):
        driver = start(drive, cluster.address, root, plan, settings, "tokens")
        while driver.exitcode is None:
            if nodes and len(list(root.glob(".work/tokens/*/out/units/*.json"))) >= nodes[0]:
                cluster.remove_node(rng.choice(sorted(cluster.worker_nodes, key=id)), allow_graceful=False)
                cluster.add_node(num_cpus=1, object_store_memory=10**8)
                nodes.pop(0)
            driver.join(0.05)
        if driver.exitcode == 0:
            break
    assert driver.exitcode == 0
    assert not nodes


@pytest.mark.timeout(400)
def test_fifty_deaths_change_no_byte(cluster: Cluster, settings: list[str], tmp_path: Path) -> None:
    plan, root = tmp_path / "plan", tmp_path / "root"
    plan_deaths(plan)
    assert run(drive, cluster.address, root, plan, settings, "tokenizer") == 0
    die_alone(root, plan, settings)
    die_on(cluster, root, plan, settings)
    assert list(plan.iterdir()) == [], "deaths that did not happen"
    store = Store(str(root))
    record = store.load("tokens/tiny")
    store.verify(record)  # every byte, and no file that is not recorded
    files, units = undisturbed(root, tmp_path / "calm")
    assert digests(record).keys() - files.keys() == {"tokens.json"}
    assert files.items() <= digests(record).items()
    summary = json.loads((root / record.id / "tokens.json").read_text())
    shards = [shard for split in summary["splits"].values() for shard in split["shards"]]
    want = [shard.model_dump() for unit in units for entries in unit.shards.values() for shard in entries]
    assert sorted(shards, key=itemgetter("path")) == sorted(want, key=itemgetter("path"))
    ids = [id for shard in shards for id in pq.read_table(root / record.id / shard["docs"])["id"].to_pylist()]
    assert sorted(ids) == sorted(f"{number}-{i}" for number in range(5) for i in range(800))
    kept = {root / one.id / entry.path for one in store.records() for entry in one.files}
    kept |= {root / one.id / RECORD_FILE for one in store.records()}
    assert {path for path in root.rglob("*") if path.is_file() and ".work" not in path.parts} == kept
