"""One finished root for all tests, made once and copied; and one Prefect server for each test process."""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from chain import SETTINGS, bitlm, complete, interrupted
from prefect.settings import PREFECT_API_URL, PREFECT_HOME, temporary_settings

from flows.server import prefect_api


class Finished(NamedTuple):
    """A root that holds every step of ``SETTINGS``: a run that was interrupted in the first training (what happened
    then, and which artifacts there were), and the run that went on (what it said)."""

    root: Path
    interrupt: dict[str, Any]
    left: list[str]
    summaries: list[dict[str, Any]]


@pytest.fixture(scope="session")
def finished(once: Callable, prefect_home: Path) -> Finished:
    """Never written to: tests that change artifacts take ``copy``. Made by the command line, as a user would."""

    def make(home: Path) -> None:
        shutil.copytree(prefect_home, home / "prefect")
        words = ["run", "--json", "--root", "root"]
        first = "root/.work/pretrain/*/scratch/checkpoints/*/checkpoint.json"
        interrupt = interrupted(home, *words, settings=SETTINGS, checkpoints=first)
        left = complete(str(home / "root"))
        run = bitlm(home, *words, settings=SETTINGS)
        assert run.returncode == 0, run.stderr[-3000:]
        (home / "runs.json").write_text(json.dumps([interrupt, left, json.loads(run.stdout)]))

    home = once("finished", make)
    return Finished(home / "root", *json.loads((home / "runs.json").read_text()))


@pytest.fixture
def copy(finished: Finished, tmp_path: Path) -> Path:
    return shutil.copytree(finished.root, tmp_path / "copy")


@pytest.fixture(scope="session")
def prefect_url(prefect_home: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The API of a Prefect server that all tests of this process share; flows in this process use it too."""
    home = shutil.copytree(prefect_home, tmp_path_factory.mktemp("prefect") / "home")
    with (
        pytest.MonkeyPatch.context() as patch,
        temporary_settings({PREFECT_HOME: home}, restore_defaults={PREFECT_API_URL}),
    ):
        patch.setenv("PREFECT_HOME", str(home))  # for the server's process
        with prefect_api() as url:
            yield url
