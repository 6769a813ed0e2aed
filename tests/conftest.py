"""Shared fixtures. ``samples`` is a folder of small real FineWeb and XSum files; tests skip without it."""

import fcntl
import multiprocessing
import os
import runpy
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import bitlm_flows  # noqa: F401  (sets what Ray, Prefect and tokenizers read from the environment when they are imported)

# Ray Train looks at its workers every two seconds, and starts a process that watches for preempted nodes.
os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.2")
os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")

import ray
import torch
from hypothesis import settings

# Every Python that a test starts runs sitecustomize.py from this folder; this one does so here.
STARTUP = Path(__file__).parent / "startup"
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(STARTUP), os.environ.get("PYTHONPATH")]))
runpy.run_path(str(STARTUP / "sitecustomize.py"))

# Processes that a fork server starts need not import these once more, which takes seconds.
multiprocessing.set_forkserver_preload(["bitlm.train.loop", "pandas", "tests.tasks.dying"])  # pyarrow imports pandas

# A busy machine is no fault.
settings.register_profile("untimed", settings(), deadline=None)
settings.load_profile("untimed")

# As many as a worker has: sums depend, in their last bits, on how many threads share them.
torch.set_num_threads(1)


def pytest_runtest_teardown() -> None:
    """A worker's code, which tests run in their own process too, takes as many threads as its configuration says."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def samples() -> Path:
    folder = Path(os.environ.get("BITLM_SAMPLES", Path(__file__).parents[2] / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no sample data at {folder}; set BITLM_SAMPLES to a folder that holds it")
    return folder


@pytest.fixture(scope="module")
def ray_session() -> None:
    """A Ray of this machine. The tests of a process share it; those that need one of their own shut it down first.

    It is told of a GPU, whether there is one or not: Ray places by what it is told.
    """
    if not ray.is_initialized():
        ray.init(
            address="local",
            num_cpus=3,
            num_gpus=1,
            include_dashboard=False,
            log_to_driver=False,
            object_store_memory=10**8,
        )


def pytest_sessionfinish() -> None:
    ray.shutdown()


@pytest.fixture(scope="session")
def once(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Callable[[str, Callable[[Path], None]], Path]:
    """``once(name, make)``: a folder for all test processes. The first that asks makes it, the others wait."""
    base = tmp_path_factory.getbasetemp()
    shared = base if worker_id == "master" else base.parent

    def folder(name: str, make: Callable[[Path], None]) -> Path:
        made = shared / name
        made.mkdir(exist_ok=True)
        with (shared / f"{name}.lock").open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not os.fstat(lock.fileno()).st_size:
                make(made)
                lock.write("made")
        return made

    return folder


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Copies and notes of this machine go to a folder of the test run's own, and so does the Prefect database that the
    first private server makes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BITLM_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def prefect_url(own_cache: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The API of a Prefect server that all tests of this process share; flows in this process use it too."""
    from prefect.settings import PREFECT_API_URL, PREFECT_HOME, temporary_settings  # it takes seconds to load

    from bitlm_flows.server import prefect_api

    home = tmp_path_factory.mktemp("prefect")
    with temporary_settings({PREFECT_HOME: home}, restore_defaults={PREFECT_API_URL}), prefect_api() as url:
        yield url


@pytest.fixture
def build() -> Callable:
    """Makes a small model whose every parameter is random."""
    from small_models import small_model  # torch and transformers take seconds

    return small_model


# Files that take long, in the order in which two test processes should begin them: what others wait for goes first, and
# those that wait for it come when it is likely made. Many short files remain for the end, so that both processes end at
# about the same time.
LONG = (
    "tests/pipeline/test_command_line.py",
    "tests/tasks/test_tokens_kills.py",
    "tests/tasks/test_training.py",
    "tests/tasks/",
    "tests/pipeline/test_ray_job.py",
    "tests/pipeline/",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: next((k for k, start in enumerate(LONG) if item.nodeid.startswith(start)), len(LONG)))
