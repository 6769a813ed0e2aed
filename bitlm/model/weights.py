"""Start weights that ``pretrain.init_from`` names: which they are, and the state of theirs that a fingerprint holds."""

import json
import re
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

from bitlm import storage
from bitlm.data.sources.listing import HUB, hub_commit
from bitlm.errors import SourceError

CONFIG, SINGLE, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"
ARTIFACT = re.compile(r"pretrain/[A-Za-z0-9._-]+(@v[1-9][0-9]*)?")

Kind = Literal["lm", "artifact", "hub", "folder"]


def kind(init_from: str) -> Kind:
    """What a value of ``pretrain.init_from`` names. A folder that looks like an artifact's id is given as ``./…``."""
    if init_from == "lm":
        return "lm"
    if ARTIFACT.fullmatch(init_from):
        return "artifact"
    return "hub" if init_from.startswith(HUB) else "folder"


def outside_state(init_from: str) -> dict[str, Any]:
    """What a fingerprint holds of a checkpoint outside the store: its commit on the Hub, or the sha256 of its files.

    Raises SourceError where it is not there.
    """
    if kind(init_from) == "hub":
        repo, _, revision = init_from.removeprefix(HUB).partition("@")
        commit = hub_commit(HUB + repo, revision or None, "the revision behind @ in pretrain.init_from", "model")
        return {"kind": "hub", "repo": repo, "revision": commit}
    folder = Path(init_from)
    paths = [folder / CONFIG, *weight_files(folder)]
    return {"kind": "files", "files": {path.name: _sha256(path) for path in paths}}


def fetch(init_from: str, state: dict[str, Any]) -> Path:
    """A local folder with the checkpoint of exactly this state. Raises SourceError where there is none."""
    if state["kind"] == "files":
        if outside_state(init_from) != state:
            raise SourceError(f"{init_from} has changed since this run began: run again")
        return Path(init_from)
    repo, commit = state["repo"], state["revision"]
    try:
        return Path(snapshot_download(repo, revision=commit, allow_patterns=[CONFIG, "*.safetensors", INDEX]))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise SourceError(
            f"{init_from}: commit {commit[:12]} cannot be fetched ({error}): check the network, or set "
            "pretrain.init_from to the folder of a local copy"
        ) from error


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a checkpoint. Raises SourceError naming the file that is missing."""
    if (folder / CONFIG).is_file() and (folder / INDEX).is_file():
        parts = sorted(set(json.loads((folder / INDEX).read_text())["weight_map"].values()))
        paths = [folder / part for part in parts]
    else:
        paths = [folder / SINGLE]
    for path in (folder / CONFIG, *paths):
        if not path.is_file():
            raise SourceError(
                f"pretrain.init_from: {path} is missing; expected a checkpoint in Transformers' format, as safetensors"
            )
    return paths


def _sha256(path: Path) -> str:
    status = path.stat()
    return _known_sha256(str(path.resolve()), status.st_size, status.st_mtime_ns)


@lru_cache(maxsize=64)
def _known_sha256(path: str, _bytes: int, _changed: int) -> str:
    return storage.sha256(path)[1]
