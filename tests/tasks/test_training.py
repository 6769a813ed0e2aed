import json
import os
import signal
import sys
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import torch

sys.path.append(str(Path(__file__).parents[1] / "train"))
import toy_training
from ray import cloudpickle
from ray.util import placement_group_table
from toy_training import ToyBatches, metrics, run, toy_setup, weights

from bitlm.batch import Batch
from bitlm.config import PretrainConfig
from bitlm.errors import ArtifactError, ConfigError
from bitlm.train.loop import Folders, Setup
from bitlm_tasks.pretrain import _check_enough
from bitlm_tasks.training import check_tokenizer, fit

for module in (sys.modules[__name__], toy_training):  # workers cannot import tests
    cloudpickle.register_pickle_by_value(module)


class Trap(ToyBatches):
    """Springs on the rank that is asked for ``position``, which belongs to step 3, and to rank 1 if there are two."""

    def __init__(self, folder: str, kind: str, position: int = 10) -> None:
        super().__init__(4)
        self.folder, self.kind, self.position = Path(folder), kind, position

    def train(self, positions: Sequence[int]) -> Batch:
        pid = self.folder / "pids" / str(os.getpid())
        pid.parent.mkdir(exist_ok=True)
        pid.touch()
        if self.position in positions:
            if self.kind == "fault":
                raise ConfigError("toy.key = 7: no such thing")
            if not (self.folder / "sprung").exists():
                (self.folder / "sprung").touch()
                os.kill(os.getpid(), signal.SIGKILL)
        return super().train(positions)


def prepare(folder: str, kind: str, steps: int, folders: Folders) -> Setup:
    setup = toy_setup(folder, steps=steps)
    return replace(setup, batches=Trap(folder, kind, -1 if kind == "none" else 10), folders=folders)


def start(
    folder: Path, kind: str, update: Any = lambda fraction, text: None, steps: int = 6, **execution: int
) -> dict[str, Any]:
    folder.mkdir()
    return fit(
        partial(prepare, str(folder), kind, steps),
        toy_setup(folder, steps=steps, execution=execution).config,
        SimpleNamespace(stage="pretrain", name="toy"),
        SimpleNamespace(ray=lambda: None, progress=SimpleNamespace(update=update)),
        SimpleNamespace(scratch=str(folder), out=str(folder / "out")),
    )


def pids(folder: Path) -> list[int]:
    return [int(path.name) for path in (folder / "pids").iterdir()]


@pytest.mark.usefixtures("ray_session")
def test_a_killed_worker_changes_nothing(tmp_path: Path) -> None:
    """It dies in step 3; another resumes from the checkpoint of step 2 and ends with the very same weights."""
    reported: list[tuple[float, str]] = []
    figures = start(tmp_path / "killed", "kill", lambda *line: reported.append(line))
    run(tmp_path / "undisturbed")
    assert len(pids(tmp_path / "killed")) == 2
    killed, undisturbed = weights(tmp_path / "killed"), weights(tmp_path / "undisturbed")
    assert all(torch.equal(killed[name], value) for name, value in undisturbed.items())
    losses = [[line.get("loss") for line in metrics(tmp_path / name)] for name in ("killed", "undisturbed")]
    assert losses[0] == losses[1]
    assert (figures["restarts"], figures["steps"]) == (1, 6)
    assert figures["validation_nats_per_token"] == metrics(tmp_path / "killed")[-1]["validation_nats_per_token"]
    assert figures["parameters"]["total"] == sum(value.numel() for value in killed.values())
    seconds = sum(line.get("seconds", 0) for line in metrics(tmp_path / "killed"))  # those before the kill too
    assert figures["train_seconds"] == pytest.approx(seconds)
    assert reported[0] == (0.0, "starting 1 worker(s)")


@pytest.mark.usefixtures("ray_session")
def test_a_fault_of_the_user_arrives_as_it_is_and_is_not_retried(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^toy.key = 7: no such thing$"):
        start(tmp_path / "fault", "fault", num_workers=2)
    psutil.wait_procs([psutil.Process(pid) for pid in pids(tmp_path / "fault") if psutil.pid_exists(pid)], timeout=20)
    assert not any(map(psutil.pid_exists, pids(tmp_path / "fault")))


@pytest.mark.usefixtures("ray_session")
def test_an_interrupt_ends_the_workers(tmp_path: Path) -> None:
    def interrupt(fraction: float, text: str) -> None:
        if fraction > 0:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        start(tmp_path / "long", "none", interrupt, steps=100_000)
    alive = [psutil.Process(pid) for pid in pids(tmp_path / "long") if psutil.pid_exists(pid)]
    assert not psutil.wait_procs(alive, timeout=20)[1]


@pytest.mark.usefixtures("ray_session")
def test_more_workers_than_this_machine_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with pytest.raises(ConfigError, match=r"pretrain.execution asks for 2 workers with 10000 CPU each, this machine"):
        start(tmp_path / "many", "none", num_workers=2, cpus_per_worker=10_000)


@pytest.mark.usefixtures("ray_session")
@pytest.mark.skipif(torch.cuda.is_available(), reason="Ray's GPU is there")
def test_a_gpu_that_torch_cannot_use_ends_the_training_at_once(tmp_path: Path) -> None:
    """Ray has a GPU to give, so that Ray Train starts a worker on it."""
    with pytest.raises(ConfigError, match=r"^pretrain\.execution\.use_gpu: Ray gives a worker on .* a GPU, but torch "):
        start(tmp_path / "gpu", "none", use_gpu=True)
    assert all(group["state"] == "REMOVED" for group in placement_group_table().values()), "a GPU is still taken"


@pytest.mark.parametrize(
    ("train", "validation", "message"),
    [
        ([70, 15], [16], r"^tokens/x@v1 holds 4 train sequences of pretrain.sequence_length = 16 tokens, too few"),
        ([80], [15], r"^tokens/x@v1 holds 0 validation sequences of .* too few for one validation"),
    ],
)
def test_too_little_text(train: list[int], validation: list[int], message: str) -> None:
    splits = {"train": train, "validation": validation}
    shards = {split: {"shards": [{"tokens": count} for count in counts]} for split, counts in splits.items()}
    store = SimpleNamespace(read_bytes=lambda record, path: json.dumps({"splits": shards}).encode())
    with pytest.raises(ConfigError, match=message):
        _check_enough(store, SimpleNamespace(id="tokens/x@v1"), PretrainConfig(batch_size=5, sequence_length=16))
    _check_enough(store, SimpleNamespace(id="tokens/x@v1"), PretrainConfig(batch_size=1, sequence_length=8))


def test_another_tokenizer_is_refused() -> None:
    entry = SimpleNamespace(id="tokenizer/a@v1", fingerprint="a")
    made = SimpleNamespace(id="tokens/x@v1", inputs={"tokenizer": entry})
    check_tokenizer(made, SimpleNamespace(id="tokenizer/a@v2", fingerprint="a"))
    with pytest.raises(ArtifactError, match=r"tokens/x@v1 was made with tokenizer/a@v1, not with tokenizer/b@v1"):
        check_tokenizer(made, SimpleNamespace(id="tokenizer/b@v1", fingerprint="b"))
