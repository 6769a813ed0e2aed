"""Fifty deaths during one job: of workers in the middle of their writes, of the driver, and of whole nodes."""

import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from operator import itemgetter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from ray.cluster_utils import Cluster

from bitlm.artifacts.record import RECORD_FILE
from bitlm.artifacts.store import Store
from bitlm.data.shards.encode import encode_unit
from bitlm.data.shards.units import Job, UnitRecord
from bitlm.data.shards.units import plan as plan_units
from bitlm.data.sources.corpus import load_corpus
from bitlm.steps import STAGES
from tests.tasks.data_stages import digests, sha256

PROJECT = Path(__file__).parents[2]
UNITS, WORKER_DEATHS, DRIVER_DEATHS, NODE_DEATHS = 40, 45, (9, 20, 31), 2
WORDS = ["the", "value", "of", "an", "item", "is", "returned", "where", "none", "was", "given", "before", "after"]

# The driver: the stages as they are, but units and driver look up in a plan when they are to die.
DRIVER = """
import json, os, random, signal, sys
from pathlib import Path
import ray
from bitlm import storage
from bitlm.data.shards import encode
from tasks import tokens
from tests.tasks.data_stages import run_stages

root, plan = Path(sys.argv[1]), Path(sys.argv[2])

def die():
    os.kill(os.getpid(), signal.SIGKILL)

def due(plan, name):
    try:
        (plan / name).unlink()
    except FileNotFoundError:
        return False
    return True

def fragile(unit, job, plan=plan, due=due, die=die):
    death = next((name for name in (f"{unit.index}-0", f"{unit.index}-1") if due(plan, name)), None)
    if death is None:
        return encode.encode_unit(unit, job)
    moment, calls, real = random.Random(death).randrange(8), [0], (os.replace, storage.write_atomic)

    def replace(*names):  # before, or after, one of the files appears
        if calls[0] == moment:
            die()
        real[0](*names)
        calls[0] += 2
        if calls[0] == moment + 1:
            die()

    os.replace = replace
    try:
        encode.encode_unit(unit, job)
        die()
    finally:
        os.replace = real[0]

class Meter(tokens.Meter):
    def add(self, result):
        super().add(result)
        if due(plan, f"driver-{self._done['units']}"):
            die()

tokens.encode_unit = ray.remote(max_retries=tokens.RETRIES)(fragile)
tokens.Meter = Meter
run_stages(root, *sys.argv[3:])
"""


@pytest.fixture
def cluster() -> Iterator[Cluster]:
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
        f"corpus.source={tmp_path / 'source'}", f"corpus.summaries={tmp_path / 'summaries'}",
        "corpus.validation_fraction=0.1", "tokenizer.vocab_size=300", "tokens.unit_bytes=1",
    ]  # fmt: skip


def start(cluster: Cluster, root: Path, plan: Path, settings: list[str]) -> subprocess.Popen:
    environment = {**os.environ, "RAY_ADDRESS": cluster.address, "PYTHONPATH": str(PROJECT)}
    command = [sys.executable, "-c", DRIVER, str(root), str(plan), *settings]
    return subprocess.Popen(command, env=environment, cwd=PROJECT, stderr=subprocess.PIPE, text=True)


def undisturbed(root: Path, out: Path) -> tuple[dict[str, str], list[UnitRecord]]:
    """path → sha256 of what the units make of the same artifacts, one after the other in this process, and records."""
    store = Store(str(root))
    corpus, tokenizer = store.load("corpus/tiny"), store.load("tokenizer/tiny")
    job = Job(store.root, str(out), STAGES["tokens"].format, corpus, tokenizer, "text", "id", 0.1)
    records = [encode_unit(unit, job).record for unit in plan_units(load_corpus(store, corpus).files, 1)]
    assert len(records) == UNITS
    files = [path for path in out.rglob("*") if path.is_file()]
    return {str(path.relative_to(out)): sha256(path) for path in files}, records


@pytest.mark.timeout(400)
def test_fifty_deaths_change_no_byte(cluster: Cluster, settings: list[str], tmp_path: Path) -> None:
    plan, root = tmp_path / "plan", tmp_path / "root"
    plan.mkdir()
    rng = random.Random(1)
    for name in rng.sample([f"{unit}-{number}" for unit in range(UNITS) for number in (0, 1)], WORKER_DEATHS):
        (plan / name).touch()
    for done in DRIVER_DEATHS:
        (plan / f"driver-{done}").touch()
    nodes, starts = NODE_DEATHS, 0
    while True:
        driver, starts = start(cluster, root, plan, settings), starts + 1
        while driver.poll() is None:
            made = len(list(root.glob(".work/tokens/*/out/units/*.json")))
            if nodes and made >= UNITS * (NODE_DEATHS + 1 - nodes) // (NODE_DEATHS + 1):
                cluster.remove_node(rng.choice(sorted(cluster.worker_nodes, key=id)), allow_graceful=False)
                cluster.add_node(num_cpus=1, object_store_memory=10**8)
                nodes -= 1
            time.sleep(0.05)
        if driver.returncode == 0:
            break
        assert starts < 20, driver.stderr.read()
    assert nodes == 0
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
