import json
from dataclasses import replace
from pathlib import Path

import pytest
from toy_training import run, stop_at, toy_setup

from bitlm.errors import ArtifactError
from bitlm.train import checkpoint
from bitlm.train.loop import train


@pytest.fixture
def stopped(tmp_path: Path) -> Path:
    """The checkpoints of a training that was cut off in step 5: those of steps 2 and 4."""
    with pytest.raises(KeyboardInterrupt):
        train(toy_setup(tmp_path), report=stop_at(5))
    return tmp_path / "checkpoints"


def test_the_newest_complete_one_is_found(stopped: Path) -> None:
    assert sorted(path.name for path in stopped.iterdir()) == ["step-00000002", "step-00000004"]
    assert checkpoint.newest(str(stopped)).step == 4
    (stopped / "step-00000004" / "checkpoint.json").unlink()
    (stopped / "step-00000006").mkdir()
    (stopped / "step-00000006" / "__0_0.distcp").write_bytes(b"cut off")
    assert checkpoint.newest(str(stopped)).step == 2
    assert checkpoint.newest(str(stopped / "nowhere")) is None


def test_an_incomplete_one_is_ignored_and_replaced(stopped: Path, tmp_path: Path) -> None:
    (stopped / "step-00000004" / "checkpoint.json").unlink()
    (stopped / "step-00000004" / "__7_0.distcp").write_bytes(b"of a rank that is no more")
    assert run(tmp_path)[0]["step"] == 3
    assert not (stopped / "step-00000004" / "__7_0.distcp").exists()


@pytest.mark.parametrize("name", ["__0_0.distcp", ".metadata", "metrics.jsonl", "checkpoint.json"])
def test_a_flipped_byte_is_refused_by_name(stopped: Path, tmp_path: Path, name: str) -> None:
    file = stopped / "step-00000004" / name
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    with pytest.raises(ArtifactError, match=f"step-00000004/{name} is damaged.*delete .*step-00000004 to go on"):
        run(tmp_path)


@pytest.mark.parametrize("change", [Path.unlink, lambda file: file.write_bytes(file.read_bytes()[:-1])])
def test_a_missing_or_short_file_is_refused_by_name(stopped: Path, tmp_path: Path, change) -> None:
    change(stopped / "step-00000004" / "__0_0.distcp")
    with pytest.raises(ArtifactError, match=r"step-00000004/__0_0.distcp (is missing|has .* bytes instead of)"):
        run(tmp_path)


def test_only_the_last_few_are_kept(tmp_path: Path) -> None:
    run(tmp_path, steps=7, execution={"checkpoint_every": 1, "keep_checkpoints": 3})
    names = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert names == ["step-00000005", "step-00000006", "step-00000007"]


def test_nothing_is_removed_when_the_newest_fails(stopped: Path, tmp_path: Path, monkeypatch) -> None:
    def full(*_):
        raise OSError("no space left")

    monkeypatch.setattr(checkpoint, "_finish", full)
    with pytest.raises(OSError, match="no space left"):
        run(tmp_path, execution={"keep_checkpoints": 1})
    assert checkpoint.newest(str(stopped)).step == 4


def test_the_record_names_every_file(stopped: Path) -> None:
    folder = stopped / "step-00000004"
    record = json.loads((folder / "checkpoint.json").read_text())
    assert {path.name for path in folder.iterdir()} == {*record["files"], "checkpoint.json"}


def test_on_an_object_store(tmp_path: Path) -> None:
    """``memory://`` goes the way of all remote stores: written aside, put, read back in ranges."""
    local = toy_setup(tmp_path)
    remote = replace(local, checkpoints="memory://bitlm-test-checkpoints")
    with pytest.raises(KeyboardInterrupt):
        train(remote, report=stop_at(5))
    told: list[dict] = []
    train(remote, report=told.append)
    assert told[0]["step"] == 5
    run(tmp_path / "whole")
    model = "out/model/model.safetensors"
    assert (tmp_path / model).read_bytes() == (tmp_path / "whole" / model).read_bytes()
