"""The Ray session of a run: that of the cluster that RAY_ADDRESS names, else one of its own on this machine."""

import logging
import os
import signal
import threading

import ray

# Enough for the small objects that tasks exchange; their data goes through files.
LOCAL_OBJECT_STORE_BYTES = 512 * 2**20


class RaySession:
    def __init__(self) -> None:
        self._started = False

    def start(self) -> None:
        """Connect to Ray, or start it. Does nothing if a session is open already."""
        if ray.is_initialized():
            return
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        handler = signal.getsignal(signal.SIGTERM)
        quiet = {"log_to_driver": False, "logging_level": logging.ERROR, "configure_logging": True}
        address = os.environ.get("RAY_ADDRESS")
        if address:
            ray.init(address=address, **quiet)
        else:
            ray.init(address="local", include_dashboard=False, object_store_memory=LOCAL_OBJECT_STORE_BYTES, **quiet)
        self._started = True
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, handler)  # Ray has put its own in its place

    def close(self) -> None:
        """Disconnect from the cluster, or stop the one that ``start`` started."""
        if self._started and ray.is_initialized():
            ray.shutdown()
        self._started = False
