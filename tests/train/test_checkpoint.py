import hashlib
import json
import pickle
from dataclasses import replace
from pathlib import Path

import pytest
from toy_training import run, stop_at, toy_setup

from bitlm import storage
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


@pytest.mark.parametrize("name", ["__0_0.distcp", "tensors.json", "metrics.jsonl", "checkpoint.json"])
def test_a_flipped_byte_is_refused_by_name(stopped: Path, tmp_path: Path, name: str) -> None:
    file = stopped / "step-00000004" / name
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    with pytest.raises(ArtifactError, match=f"step-00000004/{name} is damaged.*delete .*step-00000004 to go on"):
        run(tmp_path)


@pytest.mark.parametrize("text", ["[]", "3", "null", '"x"', "{}", '{"record_sha256": 1}', "{"])
def test_a_record_of_another_form_is_refused_by_name(stopped: Path, tmp_path: Path, text: str) -> None:
    (stopped / "step-00000004" / "checkpoint.json").write_text(text)
    with pytest.raises(ArtifactError, match=r"step-00000004/checkpoint.json is damaged"):
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


class Payload:
    """A pickle of it leaves a file when it is loaded."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple:
        return Path.touch, (self.file,)


@pytest.mark.parametrize("name", ["__0_0.distcp", "tensors.json", "metrics.jsonl", ".metadata"])
def test_nothing_in_a_checkpoint_can_run_code(stopped: Path, tmp_path: Path, name: str) -> None:
    """Not even where all digests agree, as in a checkpoint that was made with intent."""
    checkpoint, executed = stopped / "step-00000004", tmp_path / "executed"
    payload = pickle.dumps(Payload(executed), protocol=2)
    if name == "__0_0.distcp":
        index = json.loads((checkpoint / "tensors.json").read_text())
        for chunk in (chunk for tensor in index.values() for chunk in tensor["chunks"]):
            chunk.update(start=0, bytes=len(payload))
        (checkpoint / "tensors.json").write_text(json.dumps(index))
    (checkpoint / name).write_bytes(payload)
    record = json.loads((checkpoint / "checkpoint.json").read_text())
    del record["record_sha256"]
    files = [path for path in checkpoint.iterdir() if path.name != "checkpoint.json"]
    record["files"] = {path.name: list(storage.sha256(str(path))) for path in files}
    digest = hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()
    (checkpoint / "checkpoint.json").write_text(json.dumps({**record, "record_sha256": digest}))
    try:
        run(tmp_path)
    except (ArtifactError, ValueError):
        assert name != ".metadata"  # which is no file of ours, and ignored
    assert not executed.exists()


def test_files_that_the_record_does_not_name_are_not_read(stopped: Path, tmp_path: Path) -> None:
    checkpoint = stopped / "step-00000004"
    record = json.loads((checkpoint / "checkpoint.json").read_text())
    del record["record_sha256"], record["files"]["__0_0.distcp"]
    digest = hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()
    (checkpoint / "checkpoint.json").write_text(json.dumps({**record, "record_sha256": digest}))
    with pytest.raises(ArtifactError, match=r"tensors.json is no index of tensors \(__0_0.distcp is not in checkpoint"):
        run(tmp_path)


@pytest.mark.parametrize("name", ["../outside", "/etc/hostname", "a/../../../x", ""])
def test_a_file_outside_of_the_checkpoint_is_not_read(stopped: Path, tmp_path: Path, name: str) -> None:
    checkpoint = stopped / "step-00000004"
    (stopped / "outside").write_bytes(b"x")
    record = json.loads((checkpoint / "checkpoint.json").read_text())
    del record["record_sha256"]
    record["files"][name] = [1, hashlib.sha256(b"x").hexdigest()]
    digest = hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()
    (checkpoint / "checkpoint.json").write_text(json.dumps({**record, "record_sha256": digest}))
    with pytest.raises(ArtifactError, match=r"checkpoint\.json is damaged \(.* is not a path inside its folder\)"):
        run(tmp_path)


def test_all_files_are_verified_before_one_is_read(stopped: Path, tmp_path: Path, monkeypatch) -> None:
    done: list[str] = []
    verify, parse, read = checkpoint._verify, checkpoint.parse_index, checkpoint.TensorReader.read_data
    monkeypatch.setattr(checkpoint, "_verify", lambda found, name: (done.append(name), verify(found, name)))
    monkeypatch.setattr(checkpoint, "parse_index", lambda data: (done.append("parse"), parse(data))[1])
    monkeypatch.setattr(checkpoint.TensorReader, "read_data", lambda *given: (done.append("read"), read(*given))[1])
    run(tmp_path)
    assert done == ["__0_0.distcp", "metrics.jsonl", "tensors.json", "parse", "read"]


def test_a_checkpoint_of_another_model_is_refused(stopped: Path, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"checkpoint .*step-00000004 does not fit this training \(.*delete"):
        run(tmp_path, head="lm")


def test_buffers_are_saved(stopped: Path) -> None:
    """Those that are part of a model's weights, such as the codebook's unigram frequencies, but no others."""
    run(stopped / "codebook", head="codebook", steps=2)
    index = json.loads((stopped / "codebook" / "checkpoints" / "step-00000002" / "tensors.json").read_text())
    assert index["model.head.readout.codebook.log_unigram"]["shape"] == [50]
    assert not [name for name in index if "inv_freq" in name]


def test_the_record_names_every_file(stopped: Path) -> None:
    folder = stopped / "step-00000004"
    record = json.loads((folder / "checkpoint.json").read_text())
    assert {path.name for path in folder.iterdir()} == {*record["files"], "checkpoint.json"}


def test_on_an_object_store(tmp_path: Path) -> None:
    """``memory://`` goes the way of all remote stores: written aside, put, read back in ranges."""
    local = toy_setup(tmp_path)
    remote = replace(local, folders=replace(local.folders, checkpoints="memory://bitlm-test-checkpoints"))
    with pytest.raises(KeyboardInterrupt):
        train(remote, report=stop_at(5))
    reported: list[dict] = []
    train(remote, report=reported.append)
    assert reported[0]["step"] == 5
    run(tmp_path / "whole")
    model = "out/model/model.safetensors"
    assert (tmp_path / model).read_bytes() == (tmp_path / "whole" / model).read_bytes()
