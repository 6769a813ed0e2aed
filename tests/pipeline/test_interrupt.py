"""Ctrl-C in the middle of a training."""

import json
import os
import shutil
import signal
import subprocess
import time

import psutil
import pytest
from chain import BIN, SETTINGS, assignments, environment

from flows.cli import main

STEPS = 60


@pytest.mark.usefixtures("prefect_url", "ray_session")
def test_ctrl_c_ends_within_ten_seconds_and_the_next_run_continues(copy, prefect_home, tmp_path, capsys):
    shutil.copytree(prefect_home, tmp_path / "prefect")
    for gone in ("pretrain", "finetune", "evaluate", "report"):
        shutil.rmtree(copy / gone)
    execution = {"cpus_per_worker": 1, "checkpoint_every": 5}
    longer = {"heads": ["diffusion"], "init_from": None, "steps": STEPS, "execution": execution}
    words = ["run", "pretrain", "--json", "--root", str(copy)]
    words += assignments({**SETTINGS, "pretrain": {**SETTINGS["pretrain"], **longer}})
    run = subprocess.Popen(
        [str(BIN / "bitlm"), *words],
        env=environment(tmp_path),
        cwd=tmp_path,
        start_new_session=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    _wait_for(lambda: list(copy.glob(".work/pretrain/*/scratch/checkpoints/*/checkpoint.json")), 300)
    processes = psutil.Process(run.pid).children(recursive=True)
    began = time.monotonic()
    os.killpg(run.pid, signal.SIGINT)
    run.communicate(timeout=30)
    assert time.monotonic() - began < 10
    assert run.returncode == 130
    _, alive = psutil.wait_procs(processes, timeout=3)
    assert not alive
    assert not (copy / "pretrain").exists()
    assert main(words) == 0
    resumed = json.loads(capsys.readouterr().out)
    assert resumed["metrics"]["steps"] == STEPS
    assert resumed["metrics"]["resumed_from_step"] > 0


def _wait_for(condition, seconds: float) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come to that"
        time.sleep(0.02)
