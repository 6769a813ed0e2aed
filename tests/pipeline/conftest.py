"""One finished root for all tests, made once and copied."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from chain import SETTINGS, complete, deployed, interrupted


class Finished(NamedTuple):
    """A root that holds every step of ``SETTINGS``. The command line began it and was interrupted in the first
    training (``interrupt``: what happened, ``left``: the artifacts that there were); a deployment finished it
    (``deployment``: what happened)."""

    root: Path
    interrupt: dict[str, Any]
    left: list[str]
    deployment: dict[str, Any]


@pytest.fixture(scope="session")
def finished(once: Callable, prefect_url: str) -> Finished:
    """Never written to: tests that change artifacts take ``copy``."""

    def make(home: Path) -> None:
        for name in ("tasks.py", "datasets.py", "yaml.py", "torch.py"):  # files of a user in the folder of the run
            (home / name).write_text("raise ImportError('a file of the user')")
        root = home / "root"
        checkpoints = "root/.work/pretrain/*/scratch/checkpoints/*/checkpoint.json"
        interrupt = interrupted(home, "run", "--root", str(root), settings=SETTINGS, checkpoints=checkpoints)
        left = complete(str(root))
        deployment = deployed(home, prefect_url, root, SETTINGS)
        (home / "told.json").write_text(json.dumps([interrupt, left, deployment]))

    home = once("finished", make)
    return Finished(home / "root", *json.loads((home / "told.json").read_text()))


@pytest.fixture
def copy(finished: Finished, tmp_path: Path) -> Path:
    return shutil.copytree(finished.root, tmp_path / "copy")
