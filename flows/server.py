"""A Prefect server for a run that has none configured: its own session, loopback only, gone whenever its owner is gone.

Prefect's own ephemeral server shares the terminal's process group: Ctrl-C ends the server before the flow, which then
waits for it, and a killed flow leaves it behind. Here the server is a guard process that outlives Ctrl-C and ends by
itself when the pipe to its owner closes, however the owner ended.
"""

import os
import re
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO

import httpx
from prefect.settings import PREFECT_API_URL, PREFECT_HOME, PREFECT_LOGGING_TO_API_ENABLED, temporary_settings

from bitlm.errors import BitLMError

STARTUP_SECONDS = 120
GRACE_SECONDS = 3


@contextmanager
def prefect_api() -> Iterator[str]:
    """The URL of the configured Prefect API, or of a private server that lives as long as the context."""
    configured = PREFECT_API_URL.value()
    if configured:
        yield configured
        return
    with tempfile.TemporaryFile() as log:  # a pipe that nobody reads would stop the server when it is full
        guard, url = _start(log)
        try:
            _wait_until_ready(url, guard, log)
            with temporary_settings({PREFECT_API_URL: url, PREFECT_LOGGING_TO_API_ENABLED: False}):
                yield url
        finally:
            guard.kill()
            guard.communicate()


def _start(log: IO[bytes]) -> tuple[subprocess.Popen[bytes], str]:
    with socket.create_server(("127.0.0.1", 0)) as listening:  # handed over: nobody can take the port meanwhile
        guard = subprocess.Popen(
            [sys.executable, "-m", "bitlm_flows.server", str(listening.fileno())],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=log,
            pass_fds=[listening.fileno()],
            start_new_session=True,
            env={**os.environ, "PREFECT_UI_ENABLED": "0"},
        )
        return guard, f"http://127.0.0.1:{listening.getsockname()[1]}/api"


def _wait_until_ready(url: str, guard: subprocess.Popen[bytes], log: IO[bytes]) -> None:
    pause = threading.Event()
    for _ in range(STARTUP_SECONDS * 10):
        if guard.poll() is not None:
            log.seek(0)
            raise BitLMError(
                f"the local Prefect server ended while starting: {_reason(log.read().decode(errors='replace'))} "
                f"(its files are in {PREFECT_HOME.value()}, the value of PREFECT_HOME)"
            )
        try:
            if httpx.get(f"{url}/health", timeout=1).status_code == httpx.codes.OK:
                return
        except httpx.TransportError:
            pass  # not answering yet
        pause.wait(0.1)
    raise BitLMError(
        f"the local Prefect server was not ready after {STARTUP_SECONDS} s; set PREFECT_API_URL to use a running one"
    )


def _reason(log: str) -> str:
    """The last exception of a log, or its last line."""
    lines = [line for line in log.splitlines() if line.strip()]
    raised = [line for line in lines if re.match(r"[\w.]*(Error|Exception)\b", line)]
    return (raised or lines or ["without a message"])[-1]


def _end_with_owner() -> None:
    os.read(0, 1)  # sys.stdin would hold a lock that Python wants when it ends: it aborts, and hides why it ended
    os._exit(0)


def _serve(listening: socket.socket) -> None:
    import uvicorn
    from prefect.server.api.server import create_app

    threading.Thread(target=_end_with_owner, daemon=True).start()
    config = uvicorn.Config(create_app(ephemeral=True), log_level="error", timeout_graceful_shutdown=GRACE_SECONDS)
    uvicorn.Server(config).run(sockets=[listening])


if __name__ == "__main__":
    _serve(socket.socket(fileno=int(sys.argv[1])))
