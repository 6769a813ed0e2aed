"""The Ray session of a run: that of the cluster that RAY_ADDRESS names, else one of its own on this machine."""

import logging
import os
import re
import secrets
import signal
import socket
import tempfile
import threading
from contextlib import ExitStack

import grpc
import ray
from ray._private.grpc_utils import init_grpc_channel
from ray._private.services import canonicalize_bootstrap_address
from ray._raylet import AuthenticationTokenLoader
from ray.core.generated.gcs_service_pb2 import GetClusterIdRequest
from ray.core.generated.gcs_service_pb2_grpc import NodeInfoGcsServiceStub
from ray.exceptions import RayError
from ray.job_config import JobConfig

from bitlm.errors import ServiceError

# Enough for the small objects that tasks exchange; their data goes through files.
LOCAL_OBJECT_STORE_BYTES = 512 * 2**20
ANSWER_SECONDS = 10
# Ray's sockets lie some folders below its temporary one, and the path of a socket has at most 107 bytes.
LONGEST_TEMPORARY_FOLDER = 26


class RaySession:
    def __init__(self) -> None:
        self._started = False
        self._folders = ExitStack()

    def start(self) -> None:
        """Connect to Ray, or start it. Does nothing if a session is open already. Raises ServiceError."""
        if ray.is_initialized():
            return
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        handler = signal.getsignal(signal.SIGTERM)
        address = cluster_address()
        if address is None:
            self._start_local()
        else:
            _connect(address)
        self._started = True
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, handler)  # Ray has put its own in its place

    def close(self) -> None:
        """Disconnect from the cluster, or stop the one that ``start`` started."""
        if self._started and ray.is_initialized():
            ray.shutdown()
        self._started = False
        self._folders.close()

    def _start_local(self) -> None:
        """Ray's files are in a folder of this session, and its token in the environment: runs share neither."""
        folder = tempfile.TemporaryDirectory(prefix="ray-", dir=_temporary_folder(), ignore_cleanup_errors=True)
        self._folders.enter_context(folder)
        if not {"RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"} & set(os.environ):
            os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
            AuthenticationTokenLoader.instance().reset_cache()
        try:
            _init("local", include_dashboard=False, object_store_memory=LOCAL_OBJECT_STORE_BYTES, _temp_dir=folder.name)
        except (OSError, RuntimeError, ValueError, RayError) as error:
            raise ServiceError(f"Ray cannot start on this machine: {_text(error)}") from error


def cluster_address() -> str | None:
    """What RAY_ADDRESS names; None if a run starts a Ray of its own."""
    address = os.environ.get("RAY_ADDRESS", "").strip()
    return None if address in ("", "local") else address


class _Job(JobConfig):
    """A job whose workers import what is installed on their machine. Ray would put the folders of the driver first on
    their path: the one where it was called, and that of its script."""

    def _serialize(self) -> str:
        self._py_driver_sys_path = []
        return super()._serialize()


def _init(address: str, **options: object) -> None:
    ray.init(
        address=address,
        job_config=_Job(),
        log_to_driver=False,
        logging_level=logging.ERROR,
        configure_logging=True,
        **options,
    )


def _connect(address: str) -> None:
    """Raises ServiceError for an address of another kind, and if no Ray of this version answers there."""
    named = f"RAY_ADDRESS = {address}"
    remedy = "correct it, or unset it to run with a Ray of the run's own"
    if address != "auto" and not re.fullmatch(r"[^/]+:\d+", address):
        raise ServiceError(
            f"{named} is not the HOST:PORT of a cluster (by default port 6379), nor auto: submit the run as a Ray job, "
            f"or {remedy}"
        )
    try:
        found = canonicalize_bootstrap_address(address)
        host, _, port = found.rpartition(":")
        socket.create_connection((host.strip("[]"), int(port)), ANSWER_SECONDS).close()
        if address != "auto":  # for which Ray decides by itself whether to send a token
            _check_service(found)
        _init(address)
    except (OSError, OverflowError, RuntimeError, ValueError, RayError) as error:
        raise ServiceError(f"{named} cannot be used ({_text(error)}): {remedy}") from error


def _check_service(address: str) -> None:
    """Raises ConnectionError if no Ray answers soon, or it refuses this client. Ray itself would ask for minutes."""
    try:
        with init_grpc_channel(address, [("grpc.enable_http_proxy", 0)]) as channel:
            service = NodeInfoGcsServiceStub(channel)
            service.GetClusterId(GetClusterIdRequest(), timeout=ANSWER_SECONDS)
    except grpc.RpcError as error:
        if error.code() is grpc.StatusCode.UNAUTHENTICATED:
            reason = "it asks for another token: set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN_PATH to a copy of its own"
        else:
            reason = f"what answers there is not Ray, {error.code().name}"
        raise ConnectionError(reason) from error


def _temporary_folder() -> str:
    """RAY_TMPDIR or the system's folder for temporary files, or a shorter one. Raises ServiceError."""
    wanted = os.environ.get("RAY_TMPDIR") or tempfile.gettempdir()
    short = next((f for f in (wanted, "/tmp", "/var/tmp") if _is_usable(f)), None)
    if short is None:
        raise ServiceError(
            f"no folder for Ray's temporary files: {wanted} cannot be written or has more than "
            f"{LONGEST_TEMPORARY_FOLDER} bytes; set RAY_TMPDIR to a shorter one"
        )
    return short


def _is_usable(folder: str) -> bool:
    return len(os.fsencode(folder)) <= LONGEST_TEMPORARY_FOLDER and os.access(folder, os.W_OK | os.X_OK)


def _text(error: Exception) -> str:
    return " ".join(line.strip() for line in str(error).splitlines() if line.strip()) or type(error).__name__
