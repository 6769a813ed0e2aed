"""A Prefect server for a run that has none configured: its own session, loopback only, gone whenever its owner is gone.

Prefect's own ephemeral server shares the terminal's process group: Ctrl-C ends the server before the flow, which then
waits for it, and a killed flow leaves it behind. Here the server is a guard process that outlives Ctrl-C and ends by
itself when the pipe to its owner closes, however the owner ended.
"""

import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import httpx
from prefect.settings import PREFECT_API_URL, PREFECT_LOGGING_TO_API_ENABLED, temporary_settings

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
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    guard = subprocess.Popen(
        [sys.executable, "-m", "flows.server", str(port)],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        start_new_session=True,
        env={**os.environ, "PREFECT_UI_ENABLED": "0"},
    )
    try:
        url = f"http://127.0.0.1:{port}/api"
        _wait_until_ready(url, guard)
        with temporary_settings({PREFECT_API_URL: url, PREFECT_LOGGING_TO_API_ENABLED: False}):
            yield url
    finally:
        guard.kill()
        guard.communicate()


def _wait_until_ready(url: str, guard: subprocess.Popen[bytes]) -> None:
    pause = threading.Event()
    for _ in range(STARTUP_SECONDS * 10):
        if guard.poll() is not None:
            assert guard.stderr is not None
            last = guard.stderr.read().decode(errors="replace").strip().splitlines()[-1:]
            raise BitLMError(f"the local Prefect server ended while starting: {' '.join(last)}")
        try:
            if httpx.get(f"{url}/health", timeout=1).status_code == httpx.codes.OK:
                return
        except httpx.TransportError:
            pass  # not listening yet
        pause.wait(0.1)
    raise BitLMError(
        f"the local Prefect server was not ready after {STARTUP_SECONDS} s; set PREFECT_API_URL to use a running one"
    )


def _end_with_owner() -> None:
    sys.stdin.buffer.read()
    os._exit(0)


def _serve(port: int) -> None:
    import uvicorn
    from prefect.server.api.server import create_app

    threading.Thread(target=_end_with_owner, daemon=True).start()
    uvicorn.run(
        create_app(ephemeral=True),
        host="127.0.0.1",
        port=port,
        log_level="error",
        timeout_graceful_shutdown=GRACE_SECONDS,
    )


if __name__ == "__main__":
    _serve(int(sys.argv[1]))
