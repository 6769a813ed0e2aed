"""The full chain through a Prefect server and worker, and as a Ray job with its root on S3."""

import errno
import json
import os
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from chain import BIN, ONE_HEAD, ONE_HEAD_STEPS, PROJECT, SETTINGS, assignments, environment
from s3 import _moto, s3, s3_root  # noqa: F401

from bitlm.artifacts.store import Store
from flows.cli import main

SMALL = {**SETTINGS, **ONE_HEAD}

# Every Ray of a machine asks for this one first; only one of them gets it.
RAY_AGENT_PORT = 52365


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return probe.getsockname()[1]


@contextmanager
def _taken(port: int) -> Iterator[None]:
    """Someone listens on the port: this process, or whoever already did."""
    with socket.socket() as holder:
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            holder.bind(("", port))
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
        else:
            holder.listen()
        yield


@contextmanager
def _running(command: list[str], log: Path, **options) -> Iterator[subprocess.Popen]:
    with log.open("w") as out:
        process = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT, start_new_session=True, **options)
        try:
            yield process
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGTERM)
            try:
                process.wait(timeout=15)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


def _wait_for_url(url: str, process: subprocess.Popen, log: Path) -> None:
    for _ in range(600):
        assert process.poll() is None, log.read_text()[-2000:]
        try:
            # A server that asks for a token answers too.
            if httpx.get(url, timeout=1).status_code < 500:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.1)
    raise AssertionError(log.read_text()[-2000:])


def _complete(root: str) -> list[str]:
    store = Store(root)
    records = store.records()
    for record in records:
        store.verify(record)
    return [record.id for record in records]


def test_by_a_deployment_on_a_prefect_worker(tmp_path):
    port = _free_port()
    api = f"http://127.0.0.1:{port}/api"
    env = environment(tmp_path, PREFECT_API_URL=api)
    prefect = str(BIN / "prefect")

    def ask(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [prefect, *words], env=env, cwd=PROJECT, capture_output=True, text=True, timeout=500, check=False
        )

    log = tmp_path / "server.log"
    with _running([prefect, "server", "start", "--host", "127.0.0.1", "--port", str(port)], log, env=env) as server:
        _wait_for_url(f"{api}/health", server, log)
        assert ask("work-pool", "create", "--type", "process", "bitlm").returncode == 0
        deployed = ask("--no-prompt", "deploy", "--all")
        assert deployed.returncode == 0, deployed.stdout + deployed.stderr
        with _running([prefect, "worker", "start", "--pool", "bitlm"], tmp_path / "worker.log", env=env):
            config = [
                "-p",
                f"config={json.dumps({'preset': 'tiny', **SMALL})}",
                "-p",
                f"root={json.dumps(str(tmp_path / 'root'))}",
            ]
            run = ask("deployment", "run", "pipeline/tiny", *config, "--watch")
            assert run.returncode == 0, run.stdout[-2000:] + (tmp_path / "worker.log").read_text()[-4000:]
            again = ask("deployment", "run", "tokens/default", *config, "--watch")
            assert again.returncode == 0, again.stdout[-2000:]
            wrong = ask("deployment", "run", "pipeline/tiny", "-p", 'config={"pretrain": {"steps": "many"}}', "--watch")
            assert wrong.returncode == 1
        artifacts = httpx.post(f"{api}/artifacts/filter", json={}).json()
    assert {a["key"] for a in artifacts} >= {"rouge", "report", "report-tables", "pretrain-tiny-diffusion"}
    assert any(a["type"] == "progress" for a in artifacts)
    assert _complete(str(tmp_path / "root")) == sorted(f"{step}@v1" for step in ONE_HEAD_STEPS)


def _submit(command: list[str], env: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """A job server takes jobs a moment after it answers: then it says "No available agent"."""
    for _ in range(60):
        job = subprocess.run(command, env=env, cwd=PROJECT, capture_output=True, text=True, timeout=500, check=False)
        if "No available agent" not in job.stderr:
            return job
        time.sleep(1)
    raise AssertionError(job.stderr)


def test_as_a_ray_job_with_its_root_on_s3(tmp_path, s3_root, capsys):  # noqa: F811
    jobs, port = _free_port(), _free_port()
    address = f"http://127.0.0.1:{jobs}"
    env = environment(tmp_path, BITLM_JOB_PORT=str(jobs), BITLM_RAY_PORT=str(port), RAY_AUTH_MODE="token")
    log = tmp_path / "head.log"
    # Ray's socket paths must be short.
    with (
        _taken(RAY_AGENT_PORT),
        tempfile.TemporaryDirectory(prefix="r-", dir="/tmp", ignore_cleanup_errors=True) as short,
        _running(
            [str(PROJECT / "cluster" / "ray-head.sh"), "--num-cpus", "2", "--temp-dir", short], log, env=env
        ) as ray_head,
    ):
        _wait_for_url(f"{address}/api/version", ray_head, log)
        submit = [str(BIN / "ray"), "job", "submit", "--address", address, "--working-dir", ".", "--"]
        job = _submit([*submit, "bitlm", "run", "--root", s3_root, *assignments(SMALL)], env)
        assert job.returncode == 0, job.stdout[-4000:] + job.stderr[-2000:]
        failed = _submit([*submit, "bitlm", "run", "tokenz"], env)
        assert failed.returncode != 0
        assert "stage 'tokenz' is unknown" in failed.stdout
    assert "ROUGE-L" in job.stdout
    assert _complete(s3_root) == sorted(f"{step}@v1" for step in ONE_HEAD_STEPS)
    assert main(["plan", "--json", "--root", s3_root, *assignments(SMALL)]) == 0
    assert {step["action"] for step in json.loads(capsys.readouterr().out)} == {"reuse"}


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setenv("BITLM_CACHE", str(tmp_path / "cache"))
