"""The private Prefect server must be gone whenever its owner is gone."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import textwrap

import httpx
import psutil
import pytest
from prefect.settings import PREFECT_API_URL, PREFECT_HOME, temporary_settings

from bitlm.errors import BitLMError
from bitlm_flows.server import prefect_api

OWNER = textwrap.dedent("""
    import flows, sys, signal
    from bitlm_flows.server import prefect_api
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell starts its background jobs with it ignored
    with prefect_api() as url:
        print(url, flush=True)
        signal.pause()
""")


def _start_owner(home) -> tuple[subprocess.Popen, str, list[psutil.Process]]:
    env = {**os.environ, "PREFECT_HOME": str(home)}
    env.pop("PREFECT_API_URL", None)
    owner = subprocess.Popen(
        [sys.executable, "-c", OWNER], stdout=subprocess.PIPE, env=env, text=True, start_new_session=True
    )
    url = owner.stdout.readline().strip()
    return owner, url, psutil.Process(owner.pid).children(recursive=True)


@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGINT])
def test_server_ends_with_its_owner(tmp_path, prefect_home, sent):
    owner, url, children = _start_owner(shutil.copytree(prefect_home, tmp_path / "home"))
    assert httpx.get(f"{url}/health").status_code == 200
    assert url.startswith("http://127.0.0.1:")
    assert children
    os.killpg(owner.pid, sent)
    owner.wait(timeout=60)
    _, alive = psutil.wait_procs(children, timeout=60)
    assert not alive


def test_why_a_server_cannot_start_is_told(tmp_path, monkeypatch):
    (tmp_path / "prefect.db").write_bytes(bytes(range(256)) * 40)
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path))
    told = rf"file is not a database \(its files are in {tmp_path}, the value of PREFECT_HOME\)"
    with (
        temporary_settings({PREFECT_HOME: tmp_path}, restore_defaults={PREFECT_API_URL}),
        pytest.raises(BitLMError, match=told),
        prefect_api(),
    ):
        pass


def test_nobody_can_take_the_servers_port_while_it_starts(tmp_path, monkeypatch):
    """A start takes seconds, in which busy machines hand out many ports."""

    def takes_the_port(command, *, pass_fds, **_):
        with socket.socket(fileno=os.dup(pass_fds[0])) as listening, socket.socket() as other:
            other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            with pytest.raises(OSError, match="Address already in use"):
                other.bind(listening.getsockname())
        raise InterruptedError

    monkeypatch.setattr(subprocess, "Popen", takes_the_port)
    with temporary_settings(restore_defaults={PREFECT_API_URL}), pytest.raises(InterruptedError), prefect_api():
        pass


def test_a_configured_server_is_used_and_none_is_started(monkeypatch):
    before = _servers()  # other tests of this process may share one
    with temporary_settings({PREFECT_API_URL: "http://127.0.0.1:9/api"}), prefect_api() as url:
        assert url == "http://127.0.0.1:9/api"
        assert _servers() == before


def _servers() -> list[psutil.Process]:
    return [c for c in psutil.Process().children(recursive=True) if "bitlm_flows.server" in " ".join(c.cmdline())]
