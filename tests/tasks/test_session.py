"""Which Ray a run uses, and what it says of one that cannot be used."""

import json
import os
import socket
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import grpc
import pytest
import ray
from ray.core.generated.gcs_service_pb2_grpc import NodeInfoGcsServiceServicer, add_NodeInfoGcsServiceServicer_to_server

from bitlm.errors import ServiceError
from bitlm_tasks import session
from bitlm_tasks.session import RaySession

PROGRAM = textwrap.dedent("""
    import json
    import bitlm_flows
    import ray
    from bitlm_tasks.session import RaySession

    def imported():
        import datasets, yaml
        import bitlm.errors
        return [datasets.__version__, yaml.__version__, bitlm.errors.ServiceError.__name__]

    session = RaySession()
    session.start()
    print(json.dumps(ray.get(ray.remote(imported).remote())))
    session.close()
""")


def test_files_of_the_user_and_long_or_missing_folders_do_not_stop_a_local_session(tmp_path):
    """A worker imports what is installed, whatever lies where the run was called."""
    for name in ("datasets.py", "yaml.py"):
        (tmp_path / name).write_text("raise OSError('a file of the user')")
    (tmp_path / "bitlm").mkdir()
    temporary = tmp_path / ("long" * 25)
    temporary.mkdir()
    env = {name: value for name, value in os.environ.items() if not name.startswith("RAY_A")}
    env |= {"TMPDIR": str(temporary), "HOME": "/dev/null/x", "http_proxy": "http://127.0.0.1:9"}
    run = subprocess.run(
        [sys.executable, "-P", "-c", PROGRAM], env=env, cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    assert json.loads(run.stdout)[2] == "ServiceError"
    assert not any(temporary.iterdir())


@pytest.fixture
def refused(monkeypatch):
    """What is said of an address. Ray itself is never asked to connect."""

    def say(address: str) -> str:
        monkeypatch.setenv("RAY_ADDRESS", address)
        monkeypatch.setattr(ray, "is_initialized", lambda: False)
        monkeypatch.setattr(ray, "init", lambda **_: pytest.fail("Ray was asked"))
        with pytest.raises(ServiceError) as error:
            RaySession().start()
        assert str(error.value).startswith(f"RAY_ADDRESS = {address} ")
        assert "\n" not in str(error.value)
        return str(error.value)

    return say


@pytest.mark.parametrize(
    "address", ["nonsense", "127.0.0.1", ":6379", "ray://127.0.0.1:10001", "http://127.0.0.1:8265", "127.0.0.1:port"]
)
def test_an_address_of_another_kind_is_refused(refused, address):
    assert "is not the HOST:PORT of a cluster" in refused(address)


@pytest.mark.parametrize("address", ["127.0.0.1:9", "127.0.0.1:99999", "host.invalid:6379"])
def test_an_address_where_nothing_answers_is_refused(refused, address):
    assert "cannot be used (" in refused(address)


def test_a_web_server_is_not_ray(refused):
    server = ThreadingHTTPServer(("", 0), BaseHTTPRequestHandler)
    server.RequestHandlerClass.log_message = lambda *_: None
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
    assert "what answers there is not Ray" in refused(f"127.0.0.1:{server.server_port}")
    server.shutdown()
    server.server_close()


def test_a_server_that_never_answers_is_given_up(refused, monkeypatch):
    monkeypatch.setattr(session, "ANSWER_SECONDS", 0.2)
    with socket.create_server(("", 0)) as listening:
        assert "DEADLINE_EXCEEDED" in refused(f"127.0.0.1:{listening.getsockname()[1]}")


class _Refusing(NodeInfoGcsServiceServicer):
    def GetClusterId(self, _request, context):  # noqa: N802
        context.abort(grpc.StatusCode.UNAUTHENTICATED, "Authentication token is missing or incorrect")


@contextmanager
def _grpc_server(service: NodeInfoGcsServiceServicer) -> Iterator[str]:
    server = grpc.server(ThreadPoolExecutor(1))
    add_NodeInfoGcsServiceServicer_to_server(service, server)
    port = server.add_insecure_port("0.0.0.0:0")
    server.start()
    yield f"127.0.0.1:{port}"
    server.stop(None)


def test_a_cluster_that_asks_for_another_token_says_which_variables_name_it(refused):
    with _grpc_server(_Refusing()) as address:
        assert "set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN_PATH" in refused(address)


def test_another_service_is_not_ray(refused):
    with _grpc_server(NodeInfoGcsServiceServicer()) as address:
        assert "what answers there is not Ray, UNIMPLEMENTED" in refused(address)


def test_without_a_short_folder_ray_has_none(monkeypatch):
    monkeypatch.setenv("RAY_TMPDIR", "/none")
    monkeypatch.setattr(session, "LONGEST_TEMPORARY_FOLDER", 3)
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with pytest.raises(ServiceError, match="set RAY_TMPDIR to a shorter one"):
        RaySession().start()


@pytest.mark.parametrize("address", [None, "local", "auto"])
def test_what_ray_says_becomes_one_line(monkeypatch, address):
    def fail(*_, **__):
        raise RuntimeError("Version mismatch: The cluster was started with:\n    Ray: 2.1.0\n")

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", fail)
    monkeypatch.setattr(session, "canonicalize_bootstrap_address", fail)
    monkeypatch.setenv("RAY_AUTH_TOKEN", "given")  # else there would be a new one, and a Ray of other tests has its own
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    if address:
        monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(ServiceError, match=r"The cluster was started with: Ray: 2\.1\.0"):
        RaySession().start()
