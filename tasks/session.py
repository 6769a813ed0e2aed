"""The Ray session of a run: joined where RAY_ADDRESS names a cluster, else started here, and then stopped as well."""

import logging
import os

import ray

# Enough for the small objects that stages pass around; their data goes through files.
LOCAL_OBJECT_STORE_BYTES = 512 * 2**20


class RaySession:
    def __init__(self) -> None:
        self._started = False

    def start(self) -> None:
        """Make ``ray`` usable. Does nothing where a session is already open."""
        if ray.is_initialized():
            return
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        quiet = {"log_to_driver": False, "logging_level": logging.ERROR, "configure_logging": True}
        address = os.environ.get("RAY_ADDRESS")
        if address:
            ray.init(address=address, **quiet)
        else:
            ray.init(address="local", include_dashboard=False, object_store_memory=LOCAL_OBJECT_STORE_BYTES, **quiet)
        self._started = True

    def close(self) -> None:
        """Leave the cluster, or stop the one that ``start`` started."""
        if self._started and ray.is_initialized():
            ray.shutdown()
        self._started = False
