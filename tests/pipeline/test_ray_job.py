"""The pipeline as a Ray job with its root on S3."""

import errno
import json
import random
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx
import pytest
from chain import BIN, ONE_OF_EACH, PROJECT, SETTINGS, STEPS, assignments, complete, environment, running
from s3 import _moto, s3, s3_root  # noqa: F401

from bitlm import storage
from bitlm_flows.cli import main

# Every Ray of a machine asks for this one first; only one of them gets it.
RAY_AGENT_PORT = 52365


def _free_port() -> int:
    """Below the ports that a system gives to whoever connects, so that it stays free until a server starts on it."""
    for port in random.sample(range(20_000, 32_000), 100):
        with suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port
    raise AssertionError("no port is free")


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


def _submit(command: list[str], env: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """A job server takes jobs a moment after it answers: then it says "No available agent"."""
    for _ in range(60):
        job = subprocess.run(command, env=env, cwd=PROJECT, capture_output=True, text=True, timeout=500, check=False)
        if "No available agent" not in job.stderr:
            return job
        time.sleep(1)
    raise AssertionError(job.stderr)


def _upload_all_but(steps: list[str], root: Path, url: str) -> None:
    for path in root.rglob("*"):
        name = path.relative_to(root).as_posix()
        if path.is_file() and not name.startswith(tuple(f"{step}@v1/" for step in steps)):
            storage.upload(str(path), storage.join(url, name))


def test_as_a_ray_job_with_its_root_on_s3(finished, tmp_path, s3_root, prefect_url, capsys):  # noqa: F811
    _upload_all_but(["corpus/tiny", "tokenizer/tiny", *ONE_OF_EACH], finished.root, s3_root)
    jobs, port = _free_port(), _free_port()
    address = f"http://127.0.0.1:{jobs}"
    env = environment(tmp_path, BITLM_JOB_PORT=str(jobs), BITLM_RAY_PORT=str(port), RAY_AUTH_MODE="token")
    env["PREFECT_API_URL"] = prefect_url
    log = tmp_path / "head.log"
    # Ray's socket paths must be short.
    with (
        _taken(RAY_AGENT_PORT),
        tempfile.TemporaryDirectory(prefix="r-", dir="/tmp", ignore_cleanup_errors=True) as short,
        running(
            [str(PROJECT / "cluster" / "ray-head.sh"), "--num-cpus", "2", "--temp-dir", short], log, env=env
        ) as ray_head,
    ):
        _wait_for_url(f"{address}/api/version", ray_head, log)
        submit = [str(BIN / "ray"), "job", "submit", "--address", address, "--working-dir", ".", "--"]
        job = _submit([*submit, "bitlm", "run", "--root", s3_root, *assignments(SETTINGS)], env)
        assert job.returncode == 0, job.stdout[-4000:] + job.stderr[-2000:]
        failed = _submit([*submit, "bitlm", "run", "tokenz"], env)
        assert failed.returncode != 0
        assert "stage 'tokenz' is unknown" in failed.stdout
    assert "ROUGE-L" in job.stdout
    assert complete(s3_root) == [f"{step}@v1" for step in sorted(STEPS)]
    assert main(["plan", "--json", "--root", s3_root, *assignments(SETTINGS)]) == 0
    assert {step["action"] for step in json.loads(capsys.readouterr().out)} == {"reuse"}


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setenv("BITLM_CACHE", str(tmp_path / "cache"))
