"""Ids of artifacts, ``stage/name@vN``. They become paths, so each is validated where it enters: from a command line, a
configuration or a file."""

import re
from typing import Annotated, NamedTuple

from pydantic import AfterValidator, Field

from bitlm.errors import ArtifactError
from bitlm.storage import is_inside

STAGE = r"[a-z0-9][a-z0-9_-]{0,63}"
NAME = r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}"
VERSION = r"[1-9][0-9]{0,8}"
FINGERPRINT = r"[0-9a-f]{64}"
_ID = re.compile(rf"(?P<stage>{STAGE})/(?P<name>{NAME})(@v(?P<version>{VERSION}))?")
_FOLDER = re.compile(rf"(?P<name>{NAME})@v(?P<version>{VERSION})")


def _check_inside(path: str) -> str:
    if not is_inside(path):
        raise ValueError("is not a path inside the artifact's folder")
    return path


RelativePath = Annotated[str, AfterValidator(_check_inside)]
Stage = Annotated[str, Field(pattern=f"^{STAGE}$")]
Name = Annotated[str, Field(pattern=f"^{NAME}$")]
FullId = Annotated[str, Field(pattern=f"^{STAGE}/{NAME}@v{VERSION}$")]
Fingerprint = Annotated[str, Field(pattern=f"^{FINGERPRINT}$")]


class ArtifactId(NamedTuple):
    """``version`` is None where the newest one is meant."""

    stage: str
    name: str
    version: int | None


def parse_id(text: str) -> ArtifactId:
    """Raises ArtifactError unless ``text`` is ``stage/name@vN`` or ``stage/name``."""
    match = _ID.fullmatch(text)
    if match is None:
        raise ArtifactError(f"{text!r} is no artifact id; expected stage/name@vN or stage/name")
    return ArtifactId(match["stage"], match["name"], int(match["version"]) if match["version"] else None)


def parse_folder(folder: str) -> tuple[str, int] | None:
    """(name, version) of an artifact's folder below its stage's; None for a folder of another kind."""
    match = _FOLDER.fullmatch(folder)
    return (match["name"], int(match["version"])) if match else None


def is_stage(text: str) -> bool:
    return re.fullmatch(STAGE, text) is not None


def check_stage(stage: str) -> None:
    """Raises ArtifactError unless ``stage`` can be the name of a stage."""
    if not is_stage(stage):
        raise ArtifactError(f"{stage!r} is not the name of a stage")


def check_name(name: str) -> None:
    """Raises ArtifactError unless ``name`` can be the name of an artifact."""
    if re.fullmatch(NAME, name) is None:
        raise ArtifactError(f"{name!r} is not the name of an artifact: use letters, digits, '.', '_' and '-'")


def check_fingerprint(fingerprint: str) -> None:
    """Raises ArtifactError unless ``fingerprint`` is a sha256 in hexadecimal digits."""
    if re.fullmatch(FINGERPRINT, fingerprint) is None:
        raise ArtifactError(f"{fingerprint!r} is not a fingerprint")
