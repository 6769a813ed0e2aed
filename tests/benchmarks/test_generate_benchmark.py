"""The benchmark of generation, on its smallest scale."""

import json
import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))
import generate

SMALL = ["--batch", "2", "--steps", "2", "--omega", "9", "--new-tokens", "8", "--prompt-tokens", "4", "--seconds", "0"]


def test_both_heads_are_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.setattr(sys, "argv", ["generate.py", *SMALL, "--json", str(tmp_path / "out.json")])
    generate.main()
    lm, diffusion = json.loads((tmp_path / "out.json").read_text())["rows"]
    assert (lm["backbone_passes_per_token"], lm["head_calls_per_token"]) == (1, 1)
    assert (diffusion["backbone_passes_per_token"], diffusion["head_calls_per_token"]) == (1 / 4, 2 * 2 / 4)


def test_a_device_that_is_not_there_is_one_line(monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.setattr(sys, "argv", ["generate.py", "--device", "gpu"])
    with pytest.raises(SystemExit, match="2"):
        generate.main()
    assert (
        capsys.readouterr().err.splitlines()[-1].startswith("generate.py: error: device 'gpu': models do not run on it")
    )
