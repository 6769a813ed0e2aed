"""Where artifacts may live: a folder of this machine, or a store that can be written to."""

import os
import tempfile

from bitlm import storage
from bitlm.config.stages import HUB
from bitlm.errors import ArtifactError

_READ_ONLY = ("http://", "https://", "hf://", HUB)
_REMEDY = "name a folder or the URL of a store, for example s3://BUCKET/PATH"


def root_url(root: str) -> str:
    """The absolute path or the URL of a root. Asks no store.

    Raises ArtifactError for what cannot be a root, SourceError for a URL that cannot be used.
    """
    if not root.removeprefix("file://").strip():
        raise ArtifactError("the root is empty: name a folder or a URL")
    if root.startswith(_READ_ONLY):
        raise ArtifactError(f"the root {storage.redact(root)} cannot be written to: {_REMEDY}")
    if not storage.is_local(root):
        storage.filesystem(root)
        return root.rstrip("/")
    path = storage.local_path(root)
    there = _nearest_existing(path)
    if not os.path.isdir(there):
        raise ArtifactError(f"the root {path} cannot be a folder, since {there} is a file: name another one")
    return path


def check_writable(root: str) -> None:
    """Make the folder of a local root, if it does not exist. That a store takes what is written is seen by the first
    write. Raises ArtifactError, also for the memory of this process, which the others of a run do not see."""
    if root.startswith("memory://"):
        raise ArtifactError(f"the root {root} lies in the memory of one process, and a run has several: {_REMEDY}")
    if not storage.is_local(root):
        return
    path = storage.local_path(root)
    try:
        os.makedirs(path, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        raise ArtifactError(f"the root {path} cannot be written to ({error.strerror}): name another one") from error


def _nearest_existing(path: str) -> str:
    while not os.path.lexists(path) and path != os.path.dirname(path):
        path = os.path.dirname(path)
    return path
