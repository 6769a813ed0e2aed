import json
from pathlib import Path

import pytest

from bitlm.config.stages import init_kind
from bitlm.errors import SourceError
from bitlm.model import weights


def checkpoint(folder: Path, content: bytes = b"weights") -> Path:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(content)
    return folder


@pytest.mark.parametrize(
    ("named", "kind"),
    [
        ("lm", "lm"),
        ("pretrain/tiny-lm", "artifact"),
        ("pretrain/0.6b-diffusion@v12", "artifact"),
        ("hub:Qwen/Qwen3-0.6B", "hub"),
        ("/models/qwen3", "folder"),
        ("./pretrain/mine", "folder"),
        ("pretrain/mine/deeper", "folder"),
        ("finetune/tiny-lm@v1", "folder"),
    ],
)
def test_what_a_value_names(named: str, kind: str) -> None:
    assert init_kind(named) == kind


def test_the_state_of_a_folder_is_what_it_holds_not_where(tmp_path: Path) -> None:
    here, there = checkpoint(tmp_path / "here"), checkpoint(tmp_path / "there" / "deep")
    (there / "README.md").write_text("no part of it")
    state = weights.outside_state(str(here))
    assert state == weights.outside_state(str(there))
    assert json.loads(json.dumps(state)) == state
    assert weights.fetch(str(there), state) == there
    (there / "model.safetensors").write_bytes(b"Weights")
    assert weights.outside_state(str(there)) != state
    with pytest.raises(SourceError, match="has changed since this run began"):
        weights.fetch(str(there), state)


def test_every_file_of_an_index_counts(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "parts")
    (folder / "model.safetensors.index.json").write_text(
        json.dumps({"weight_map": {"a": "1.safetensors", "b": "2.safetensors"}})
    )
    (folder / "1.safetensors").write_bytes(b"1")
    with pytest.raises(SourceError, match=r"2\.safetensors is missing"):
        weights.outside_state(str(folder))
    (folder / "2.safetensors").write_bytes(b"2")
    assert set(weights.outside_state(str(folder))["files"]) == {"config.json", "1.safetensors", "2.safetensors"}


@pytest.mark.parametrize("part", ["../secret.safetensors", "/secret.safetensors", "a/../../secret.safetensors"])
def test_a_part_outside_of_the_folder_is_refused(tmp_path: Path, part: str) -> None:
    folder = checkpoint(tmp_path / "parts")
    (tmp_path / "secret.safetensors").write_bytes(b"1")
    (folder / "a").mkdir()
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": part}}))
    with pytest.raises(SourceError, match=r"index\.json: .* is not a path inside its folder"):
        weights.outside_state(str(folder))


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"absent/config\.json is missing; expected a checkpoint"):
        weights.outside_state(str(tmp_path / "absent"))
