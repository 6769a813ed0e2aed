"""Start weights that ``pretrain.init_from`` names: which they are, and the state of theirs that a fingerprint holds."""

import json
from functools import lru_cache
from pathlib import Path
from typing import Any

from bitlm import storage
from bitlm.config.stages import HUB, init_kind
from bitlm.errors import BitLMError, SourceError
from bitlm.storage import hub
from bitlm.storage.hub import HubRepo

CONFIG, SINGLE, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"


def outside_state(init_from: str) -> dict[str, Any]:
    """What a fingerprint holds of a checkpoint outside the store: the digests of its files by name.

    Raises SourceError if it is not there.
    """
    if init_kind(init_from) == "hub":
        repo, commit = _hub_commit(init_from)
        return _hub_state(repo, commit)
    folder = Path(init_from)
    paths = [folder / CONFIG, *weight_files(folder)]
    return {
        "kind": "files",
        "files": {path.relative_to(folder).as_posix(): f"sha256:{_sha256(path)}" for path in paths},
    }


def fetch(init_from: str, state: dict[str, Any]) -> Path:
    """A local folder with the checkpoint of exactly this state. Raises SourceError if there is none."""
    if outside_state(init_from) != state:
        raise SourceError(f"{init_from} has changed since this run began: run again")
    if init_kind(init_from) != "hub":
        return Path(init_from)
    repo, commit = _hub_commit(init_from)
    return hub.download_snapshot(repo, commit, [*state["files"], INDEX])


def read_json(path: Path, error: type[BitLMError]) -> dict[str, Any]:
    """The object in a JSON file. Raises ``error`` if there is none."""
    try:
        content = json.loads(path.read_text(encoding="utf8"))
    except ValueError as reason:  # also bytes that are no text
        raise error(f"{path}: no valid JSON ({reason})") from reason
    if not isinstance(content, dict):
        raise error(f"{path}: it holds a {type(content).__name__}; expected an object of settings")
    return content


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a checkpoint. Raises SourceError naming the file that is missing or cannot be read."""
    if (folder / CONFIG).is_file() and (folder / INDEX).is_file():
        paths = [folder / part for part in indexed_files(folder / INDEX, SourceError)]
    else:
        paths = [folder / SINGLE]
    for path in (folder / CONFIG, *paths):
        if not path.is_file():
            raise SourceError(
                f"pretrain.init_from: {path} is missing; expected a checkpoint in Transformers' format, as safetensors"
            )
    return paths


def indexed_files(index: Path, error: type[BitLMError]) -> list[str]:
    """The files that an index names. Raises ``error`` if it names none, or one outside its folder."""
    named = read_json(index, error).get("weight_map")
    if not isinstance(named, dict) or not all(isinstance(part, str) for part in named.values()):
        raise error(f"{index}: weight_map is missing or names no files")
    parts = sorted(set(named.values()))
    for part in parts:
        if not storage.is_inside(part):
            raise error(f"{index}: {part!r} is not a path inside its folder")
    return parts


def _hub_commit(init_from: str) -> tuple[HubRepo, str]:
    name, _, revision = init_from.removeprefix(HUB).partition("@")
    repo = HubRepo(name, "model", "pretrain.init_from", "the revision behind @ in pretrain.init_from")
    return repo, hub.resolve_commit(repo, revision or None)


def _hub_state(repo: HubRepo, commit: str) -> dict[str, Any]:
    digests = {file.path: file.digest for file in hub.list_files(repo, commit) if "/" not in file.path}
    files = {name: digest for name, digest in digests.items() if name == CONFIG or name.endswith(".safetensors")}
    if CONFIG not in files or len(files) == 1:
        raise SourceError(
            f"{HUB}{repo.name} has no {CONFIG} or no safetensors file at commit {commit[:12]}: pretrain.init_from "
            "takes a checkpoint in Transformers' format"
        )
    return {"kind": "files", "files": files}


def _sha256(path: Path) -> str:
    status = path.stat()
    return _known_sha256(str(path.resolve()), status.st_size, status.st_mtime_ns)


@lru_cache(maxsize=64)
def _known_sha256(path: str, _bytes: int, _changed: int) -> str:
    return storage.sha256(path)[1]
