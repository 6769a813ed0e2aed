import secrets
from pathlib import Path

import pytest
from s3 import _moto, s3, s3_root  # noqa: F401

from bitlm.artifacts import Store


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("BITLM_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(params=["local", "memory", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    """A store on each kind of root."""
    if request.param == "s3":
        root = request.getfixturevalue("s3_root")
    else:
        root = str(tmp_path / "root") if request.param == "local" else f"memory://{secrets.token_hex(4)}"
    request.getfixturevalue("cache")
    return Store(root)


@pytest.fixture
def local(tmp_path: Path) -> Store:
    return Store(str(tmp_path / "root"))
