"""The private Prefect server must be gone whenever its owner is gone."""

import os
import signal
import subprocess
import sys
import textwrap

import httpx
import psutil
import pytest

from flows.server import prefect_api

OWNER = textwrap.dedent("""
    import flows, sys, signal
    from flows.server import prefect_api
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell starts its background jobs with it ignored
    with prefect_api() as url:
        print(url, flush=True)
        signal.pause()
""")


def _start_owner(tmp_path) -> tuple[subprocess.Popen, str, list[psutil.Process]]:
    env = {**os.environ, "PREFECT_HOME": str(tmp_path)}
    env.pop("PREFECT_API_URL", None)
    owner = subprocess.Popen(
        [sys.executable, "-c", OWNER], stdout=subprocess.PIPE, env=env, text=True, start_new_session=True
    )
    url = owner.stdout.readline().strip()
    return owner, url, psutil.Process(owner.pid).children(recursive=True)


@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGINT])
def test_server_ends_with_its_owner(tmp_path, sent):
    owner, url, children = _start_owner(tmp_path)
    assert httpx.get(f"{url}/health").status_code == 200
    assert url.startswith("http://127.0.0.1:")
    assert children
    os.killpg(owner.pid, sent)
    owner.wait(timeout=60)
    _, alive = psutil.wait_procs(children, timeout=60)
    assert not alive


def test_a_configured_server_is_used_and_none_is_started(monkeypatch):
    from prefect.settings import PREFECT_API_URL, temporary_settings

    before = _servers()  # other tests of this process may share one
    with temporary_settings({PREFECT_API_URL: "http://127.0.0.1:9/api"}), prefect_api() as url:
        assert url == "http://127.0.0.1:9/api"
        assert _servers() == before


def _servers() -> list[psutil.Process]:
    return [c for c in psutil.Process().children(recursive=True) if "flows.server" in " ".join(c.cmdline())]
