"""The record of an artifact (``artifact.json``), and the fingerprint of what it was computed from."""

import hashlib
import importlib.metadata
import json
import math
import re
import subprocess
import sys
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from pathlib import Path
from typing import Any

from pydantic import AwareDatetime, Field, ValidationError, model_validator

from bitlm.artifacts.ids import Fingerprint, FullId, Name, RelativePath, Stage
from bitlm.config.stages import Frozen
from bitlm.errors import ArtifactError, ConfigError
from bitlm.storage import Digest, redact

SCHEMA_VERSION = 1
RECORD_FILE = "artifact.json"
PACKAGES = ("torch", "transformers", "tokenizers", "fastokens", "ray", "prefect", "pyarrow", "numpy", "rouge-score")
_SECRET_NAME = re.compile(r"(?i)((key|token|password|passwd|credentials?|signature|sig)$)|secret")
_URL_SECRET = re.compile(
    r"(?i)\b\w++://[^/\s?#:]*+:[^/\s?#]*@|https?://[^/\s?#]*@"
    r"|[?&][\w-]*(key|keyid|token|secret|password|passwd|pwd|auth|authorization|jwt|credential|signature|sig)="
)
_SELF_CHECK = re.compile(rb'"record_sha256": "([0-9a-f]{64})"\n}\n\Z')


class FileEntry(Frozen):
    path: RelativePath
    bytes: int = Field(ge=0)
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")

    @property
    def digest(self) -> Digest:
        return Digest(self.bytes, self.sha256)


class InputEntry(Frozen):
    id: FullId
    fingerprint: Fingerprint


class Record(Frozen):
    """``artifact.json``. In the file a last field, ``record_sha256``, is the digest of all the other bytes."""

    schema_version: int
    id: FullId
    stage: Stage
    name: Name
    version: int = Field(ge=1)
    fingerprint: Fingerprint
    format: int
    identity: dict[str, Any]
    execution: dict[str, Any]
    inputs: dict[str, InputEntry]
    files: list[FileEntry]
    metrics: dict[str, Any]
    started: AwareDatetime
    finished: AwareDatetime
    seconds: float
    code: dict[str, Any]
    packages: dict[str, str]
    argv: list[str]

    @model_validator(mode="after")
    def _is_of_its_id(self) -> "Record":
        if self.id != f"{self.stage}/{self.name}@v{self.version}":
            raise ValueError(f"its stage, name and version are {self.stage}, {self.name} and {self.version}")
        return self

    @property
    def bytes(self) -> int:
        return sum(file.bytes for file in self.files)

    def file(self, path: str) -> FileEntry:
        """The entry of one file; raises ArtifactError if the artifact has no file of that path."""
        for entry in self.files:
            if entry.path == path:
                return entry
        raise ArtifactError(f"{self.id} has no file {path}")


@dataclass(frozen=True)
class Draft:
    """What a stage knows of the artifact that it has made; the store adds the rest of the record."""

    stage: str
    name: str
    fingerprint: str
    format: int
    identity: dict[str, Any]
    execution: dict[str, Any]
    inputs: dict[str, Record]
    metrics: dict[str, Any]
    started: datetime


def fingerprint(stage: str, format: int, identity: dict[str, Any], inputs: dict[str, str]) -> str:
    """sha256 of the canonical JSON of what determines an artifact; ``inputs`` maps roles to the inputs' fingerprints.

    Raises TypeError, naming the key, for a value without a unique JSON form (NaN, sets, bytes, objects, keys that are
    not strings), and ConfigError for a URL with a credential, which would change whenever it is renewed.
    """
    assert_plain(identity, "identity")
    refuse_secrets(identity, "")
    whole = {"stage": stage, "format": format, "identity": identity, "inputs": inputs}
    assert_plain(whole, "")
    return hashlib.sha256(
        json.dumps(whole, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()
    ).hexdigest()


def assert_plain(value: Any, path: str) -> None:
    """Raise TypeError, naming the dotted path, unless ``value`` consists of JSON's own types."""
    if value is None or type(value) in (str, bool, int):
        return
    if type(value) is float and math.isfinite(value):
        return
    if type(value) in (list, tuple):
        for i, item in enumerate(value):
            assert_plain(item, f"{path}.{i}")
    elif type(value) is dict:
        for key, item in value.items():
            if type(key) is not str:
                raise TypeError(f"{path}: the key {key!r} is {type(key).__name__}, not str")
            assert_plain(item, f"{path}.{key}".lstrip("."))
    else:
        raise TypeError(f"{path} = {value!r} ({type(value).__name__}) has no stable form")


def encode(record: Record) -> bytes:
    fields = record.model_dump(mode="json") | {"record_sha256": ""}
    text = json.dumps(fields, indent=1, allow_nan=False, ensure_ascii=False).encode() + b"\n"
    return text.replace(
        b'"record_sha256": ""\n}', b'"record_sha256": "%b"\n}' % hashlib.sha256(text).hexdigest().encode()
    )


def decode(data: bytes, artifact_id: str) -> Record:
    """The record of ``artifact_id`` from its file's bytes. Raises ArtifactError, naming it, unless it is intact."""
    check = _SELF_CHECK.search(data)
    if check is None or hashlib.sha256(data[: check.start(1)] + data[check.end(1) :]).hexdigest().encode() != check[1]:
        raise ArtifactError(
            f"{artifact_id}: {RECORD_FILE} is damaged; restore it from a copy, or remove the artifact and make it again"
        )
    fields = json.loads(data)
    del fields["record_sha256"]
    if fields.get("schema_version") != SCHEMA_VERSION:
        schema = fields.get("schema_version")
        raise ArtifactError(f"{artifact_id}: {RECORD_FILE} has schema {schema}, not {SCHEMA_VERSION}; update bitlm")
    try:
        record = Record.model_validate(fields)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "id"
        message = first["msg"].removeprefix("Value error, ")
        raise ArtifactError(f"{artifact_id}: {RECORD_FILE} is not a record: {where}: {message}") from None
    if record.id != artifact_id:
        raise ArtifactError(f"{artifact_id}: {RECORD_FILE} is the record of {record.id}; move it back")
    return record


def packages() -> dict[str, str]:
    return {name: importlib.metadata.version(name) for name in PACKAGES}


@lru_cache
def code_version() -> dict[str, Any]:
    """Version of the package; commit and dirty flag when it is run from a git checkout, else None."""
    folder = Path(__file__).parents[1]
    commit = dirty = None
    # The file must be tracked: site-packages of an environment may lie inside the checkout of another project.
    if _git(folder, "ls-files", "--error-unmatch", "errors.py") is not None:
        commit = _git(folder, "rev-parse", "HEAD")
        status = _git(folder, "status", "--porcelain")
        dirty = None if status is None else bool(status)
    return {"version": importlib.metadata.version("bitlm"), "commit": commit, "dirty": dirty}


def redacted_argv(argv: list[str] | None = None) -> list[str]:
    """The command line without what looks like a secret."""
    kept: list[str] = []
    hide_next = False
    for argument in sys.argv if argv is None else argv:
        argument = redact(argument)
        name, equals, _ = argument.partition("=")
        secret = bool(_SECRET_NAME.search(name.rsplit(".", 1)[-1]))
        kept.append("…" if hide_next else f"{name}=…" if secret and equals else argument)
        hide_next = secret and not equals and argument.startswith("-")
    return kept


def redacted(value: Any) -> Any:
    """The same tree with the credentials taken out of its URLs."""
    if isinstance(value, str):
        return redact(value)
    if isinstance(value, dict):
        return {key: redacted(item) for key, item in value.items()}
    return [redacted(item) for item in value] if isinstance(value, list | tuple) else value


def refuse_secrets(value: Any, path: str) -> None:
    """Raises ConfigError naming the key below ``path`` whose URL carries a credential."""
    if isinstance(value, str) and _URL_SECRET.search(value):
        raise ConfigError(
            f"{path} = {redact(value)}: the URL carries a credential; give it through the environment instead"
        )
    if isinstance(value, dict | list | tuple):
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            refuse_secrets(item, f"{path}.{key}".lstrip("."))


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
