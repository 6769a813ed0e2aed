"""A Prefect server for a run that has none configured: its own session, loopback only, gone whenever its owner is gone.

Prefect's own ephemeral server shares the terminal's process group: Ctrl-C ends the server before the flow, which then
waits for it, and a killed flow leaves it behind. Here the server is a guard process that outlives Ctrl-C and ends by
itself when the pipe to its owner closes, however the owner ended.

Each server has a Prefect home of its own, so that runs which know nothing of each other share no database, and neither
the user's Prefect settings nor those in the current folder reach it.
"""

import os
import re
import shutil
import socket
import sqlite3
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import IO

import httpx
import prefect
from prefect.settings import (
    PREFECT_API_URL,
    PREFECT_CLIENT_MAX_RETRIES,
    PREFECT_LOGGING_TO_API_ENABLED,
    temporary_settings,
)

from bitlm import storage
from bitlm.errors import ServiceError
from bitlm_flows.configured import answering, check_api

STARTUP_SECONDS = 120
GRACE_SECONDS = 3
SETTINGS = {PREFECT_LOGGING_TO_API_ENABLED: False, PREFECT_CLIENT_MAX_RETRIES: 2}  # of clients of a private server
DATABASE = "prefect.db"  # in a Prefect home


@contextmanager
def prefect_api() -> Iterator[str]:
    """The URL of the configured Prefect API, or of a private server that lives as long as the context.

    Raises ServiceError if the configured one cannot be used, the private one cannot start, or the one in use ends.
    """
    configured = PREFECT_API_URL.value()
    if configured:
        check_api(configured)
        with answering(configured):
            yield configured
        return
    with (
        tempfile.TemporaryDirectory(prefix="bitlm-prefect-", ignore_cleanup_errors=True) as home,
        tempfile.TemporaryFile() as log,  # a pipe that nobody reads would stop the server when it is full
    ):
        copied = _copy_database(_migrated(), Path(home, DATABASE))
        guard, url = _start(home, log)
        try:
            _wait_until_ready(url, guard, log)
            if not copied:
                _keep_migrated(Path(home, DATABASE))
            with temporary_settings(SETTINGS | {PREFECT_API_URL: url}), answering(url):
                yield url
        finally:
            guard.kill()
            guard.communicate()


def _migrated() -> Path:
    """An empty database of this version of Prefect. To make one takes longer than all the rest of a start."""
    return Path(storage.cache_root(), f"prefect-{prefect.__version__}.db")


def _keep_migrated(database: Path) -> None:
    kept = _migrated()
    with suppress(OSError):  # a cache that cannot be written costs the next start some seconds, and nothing else
        kept.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=kept.parent) as folder:
            if _copy_database(database, Path(folder, DATABASE)):
                Path(folder, DATABASE).replace(kept)


def _copy_database(source: Path, target: Path) -> bool:
    """Whether there is a copy now; there is none of a database that is missing or damaged."""
    try:
        with closing(sqlite3.connect(f"{source.as_uri()}?mode=ro", uri=True)) as connection:
            connection.execute("VACUUM INTO ?", (str(target),))
    except sqlite3.Error:
        target.unlink(missing_ok=True)
        return False
    return True


def _start(home: str, log: IO[bytes]) -> tuple[subprocess.Popen[bytes], str]:
    with socket.create_server(("127.0.0.1", 0)) as listening:  # handed over: nobody can take the port meanwhile
        guard = subprocess.Popen(
            [sys.executable, "-P", "-m", "bitlm_flows.server", str(listening.fileno())],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=log,
            pass_fds=[listening.fileno()],
            start_new_session=True,
            cwd=home,  # Prefect reads settings from the current folder too
            env=_environment(home),
        )
        return guard, f"http://127.0.0.1:{listening.getsockname()[1]}/api"


def _environment(home: str) -> dict[str, str]:
    users = ("PREFECT_", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY")
    return {
        **{name: value for name, value in os.environ.items() if not name.upper().startswith(users)},
        "PREFECT_HOME": home,
        "PREFECT_UI_ENABLED": "0",
        "PREFECT_API_BLOCKS_REGISTER_ON_START": "false",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_LOGGING_LEVEL": "CRITICAL",
    }


def _wait_until_ready(url: str, guard: subprocess.Popen[bytes], log: IO[bytes]) -> None:
    pause = threading.Event()
    with httpx.Client(trust_env=False, timeout=1) as client:  # no proxy reaches a server of this machine
        for _ in range(STARTUP_SECONDS * 10):
            if guard.poll() is not None:
                log.seek(0)
                reason = _reason(log.read().decode(errors="replace"))
                raise ServiceError(
                    f"the local Prefect server ended while starting, with exit code {guard.returncode}: {reason}; "
                    "set PREFECT_API_URL to use a running one"
                )
            try:
                if client.get(f"{url}/health").status_code == httpx.codes.OK:
                    return
            except httpx.TransportError:
                pass  # not answering yet
            pause.wait(0.1)
    raise ServiceError(
        f"the local Prefect server was not ready after {STARTUP_SECONDS} s; set PREFECT_API_URL to use a running one"
    )


def _reason(log: str) -> str:
    """The last exception of a log, or why Python itself ended, or else the last line."""
    lines = [line for line in log.splitlines() if line.strip()]
    raised = [line for line in lines if re.match(r"[\w.]*(Error|Exception|Interrupt|Exit)\b", line)]
    fatal = [line for line in lines if line.startswith("Fatal Python error:")]
    return (raised or fatal or lines or ["without a message"])[-1]


def _end_with_owner() -> None:
    os.read(0, 1)  # sys.stdin would hold a lock that Python wants when it ends: it aborts, and hides why it ended
    shutil.rmtree(os.environ["PREFECT_HOME"], ignore_errors=True)  # an owner that was killed did not
    os._exit(0)


def _serve(listening: socket.socket) -> None:
    import uvicorn
    from prefect.server.api.server import create_app

    threading.Thread(target=_end_with_owner, daemon=True).start()
    config = uvicorn.Config(create_app(ephemeral=True), log_level="error", timeout_graceful_shutdown=GRACE_SECONDS)
    uvicorn.Server(config).run(sockets=[listening])


if __name__ == "__main__":
    _serve(socket.socket(fileno=int(sys.argv[1])))
