"""The private Prefect server must be gone whenever its owner is gone."""

import os
import re
import signal
import socket
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import psutil
import pytest
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect.states import Failed

from bitlm.errors import ServiceError
from bitlm_flows import configured, server
from bitlm_flows.server import _copy_database, prefect_api
from bitlm_tasks.run import _worth_retrying

OWNER = textwrap.dedent("""
    import signal
    from bitlm_flows.server import prefect_api
    from prefect.client.orchestration import get_client
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell starts its background jobs with it ignored
    with prefect_api() as url:
        with get_client(sync_client=True) as client:
            client.read_flows(limit=1)
        print(url, flush=True)
        signal.pause()
""")

# A server must not depend on any of it.
FOREIGN = {
    "HOME": "/dev/null/x",
    "PREFECT_SERVER_API_AUTH_STRING": "user:word",
    "PREFECT_SERVER_DATABASE_CONNECTION_URL": "sqlite+aiosqlite:////dev/null/x.db",
    "HTTP_PROXY": "http://127.0.0.1:9",
    "all_proxy": "http://127.0.0.1:9",
}


def _start_owner(folder: Path, foreign: dict[str, str]) -> subprocess.Popen:
    """In ``folder``, which also takes its temporary files; all have one Prefect home, which is missing.
    It prints the URL when a client has used the server."""
    env = os.environ | {"PREFECT_HOME": str(folder.parent / "missing" / "home"), "TMPDIR": str(folder)} | foreign
    env.pop("PREFECT_API_URL", None)
    owner = [sys.executable, "-P", "-c", OWNER]
    return subprocess.Popen(owner, stdout=subprocess.PIPE, env=env, cwd=folder, text=True, start_new_session=True)


def _flow_names(url: str) -> list[str]:
    return [flow["name"] for flow in httpx.post(f"{url}/flows/filter", json={}).json()]


def test_servers_share_nothing_and_end_with_their_owners(tmp_path):
    folders = {signal.SIGKILL: tmp_path / "killed", signal.SIGINT: tmp_path / "interrupted"}
    for folder in folders.values():
        folder.mkdir()
        (folder / "uvicorn.py").write_text("raise OSError('a file of the user')")
        (folder / ".env").write_text("PREFECT_SERVER_API_AUTH_STRING=user:word")
    owners = {sent: _start_owner(folder, FOREIGN if sent == signal.SIGKILL else {}) for sent, folder in folders.items()}
    urls = [owner.stdout.readline().strip() for owner in owners.values()]
    assert all(url.startswith("http://127.0.0.1:") for url in urls)
    assert httpx.post(f"{urls[0]}/flows/", json={"name": "first"}).is_success
    assert [_flow_names(url) for url in urls] == [["first"], []]
    for sent, owner in owners.items():
        children = psutil.Process(owner.pid).children(recursive=True)
        assert children
        os.killpg(owner.pid, sent)
        owner.wait(timeout=60)
        _, alive = psutil.wait_procs(children, timeout=60)
        assert not alive
        assert not list(folders[sent].glob("bitlm-prefect-*"))


@pytest.mark.parametrize(
    ("fault", "told"),
    [
        ("raise OSError('broken')", "exit code 1: OSError: broken;"),
        ("import faulthandler as f; f.enable(); f._sigabrt()", "exit code -6: Fatal Python error: Aborted;"),
        ("import os; os._exit(3)", "exit code 3: without a message;"),
    ],
)
def test_why_a_server_cannot_start_is_told(tmp_path, monkeypatch, fault, told):
    (tmp_path / "uvicorn.py").write_text(fault)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), os.environ["PYTHONPATH"]]))
    with (
        temporary_settings(restore_defaults={PREFECT_API_URL}),
        pytest.raises(ServiceError, match=re.escape(f"ended while starting, with {told}")),
        prefect_api(),
    ):
        pass


def test_a_damaged_database_is_not_copied(tmp_path):
    damaged, target = tmp_path / "damaged.db", tmp_path / "copy.db"
    damaged.write_bytes(bytes(range(256)) * 40)
    assert not _copy_database(damaged, target)
    assert not _copy_database(tmp_path / "none.db", target)
    assert not target.exists()


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


@contextmanager
def _answering(status: int, body: bytes) -> Iterator[str]:
    """The API of a server that gives all requests one answer."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(status)
            self.end_headers()
            self.wfile.write(body)

        do_POST = do_GET  # noqa: N815

        def log_message(self, *_):
            pass

    other = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=other.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
    yield f"http://127.0.0.1:{other.server_port}/api"
    other.shutdown()
    other.server_close()


@pytest.mark.parametrize(
    ("status", "body", "told"),
    [
        (404, b"no", "is not the API of a Prefect server (status 404): correct it, or unset it"),
        (200, b"<html>", "cannot be used (Expecting value"),
        (401, b"{}", "refuses this client (status 401): set PREFECT_API_KEY or PREFECT_API_AUTH_STRING"),
        (503, b"busy", "is not the API of a Prefect server (status 503)"),
        (200, b'"1.0"', "cannot be used ("),
    ],
)
def test_a_configured_server_that_cannot_be_used_is_refused(status, body, told):
    with _answering(status, body) as url, pytest.raises(ServiceError, match=re.escape(told)) as refused:
        _use(url)
    assert str(refused.value).startswith(f"PREFECT_API_URL = {url} ")


@pytest.mark.parametrize("url", ["http://127.0.0.1:9/api", "nonsense", "http://", "https://user:word@127.0.0.1:9/api"])
def test_a_configured_server_that_does_not_answer_is_refused(url):
    with pytest.raises(ServiceError, match="PREFECT_API_URL = ") as refused:
        _use(url)
    assert "word" not in str(refused.value)


def test_a_server_that_never_answers_is_given_up(monkeypatch):
    monkeypatch.setattr(configured, "ANSWER_SECONDS", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        url = f"http://127.0.0.1:{listening.getsockname()[1]}/api"
        with pytest.raises(ServiceError, match="gives no answer"):
            _use(url)


@pytest.mark.parametrize(("part", "raised"), [("api/flows/filter", ServiceError), ("other/file", httpx.ConnectError)])
def test_a_server_that_ends_during_a_run_is_told_and_no_reason_to_run_the_stage_again(part, raised):
    lost = httpx.ConnectError("refused", request=httpx.Request("POST", f"http://127.0.0.1:9/{part}"))
    with pytest.raises(raised), configured.answering("http://127.0.0.1:9/api"):
        raise lost
    for error in (lost, ServiceError("no Ray answers")):
        assert not _worth_retrying(None, None, Failed(data=error))
    assert _worth_retrying(None, None, Failed(data=RuntimeError("a worker was lost")))


def _use(url: str) -> None:
    with temporary_settings({PREFECT_API_URL: url}), prefect_api():
        pass


def test_a_configured_server_is_used_and_none_is_started(monkeypatch):
    before = _servers()  # other tests of this process may share one
    monkeypatch.setattr(server, "check_api", lambda _: None)
    with temporary_settings({PREFECT_API_URL: "http://127.0.0.1:9/api"}), prefect_api() as url:
        assert url == "http://127.0.0.1:9/api"
        assert _servers() == before


def _servers() -> list[psutil.Process]:
    live = [c for c in psutil.Process().children(recursive=True) if c.status() != psutil.STATUS_ZOMBIE]
    return [c for c in live if "bitlm_flows.server" in " ".join(c.cmdline())]
