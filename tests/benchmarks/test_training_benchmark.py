"""The benchmark of training, on a small model."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))
import training

SMALL = {
    "hidden_size": 32,
    "num_heads": 2,
    "num_kv_heads": 1,
    "head_dim": 16,
    "ffn_size": 32,
    "head.head_dim": 16,
    "head.width": 32,
}
SIZE = ["--layers", "1", "--vocabulary", "300", "--length", "16", "--rounds", "1"]


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """The command line of a small run of all contenders."""
    rows = {name: tuple(s.replace("rank=256", "rank=8") for s in given) for name, given in training.ROWS.items()}
    monkeypatch.setattr(training, "ROWS", rows)
    settings = [word for key, value in SMALL.items() for word in ("--set", f"model.{key}={value}")]
    dtype = torch.get_default_dtype()
    yield ["training.py", *SIZE, *settings]
    torch.set_default_dtype(dtype)


def test_every_head_is_measured_beside_the_softmax_of_transformers(
    small: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(sys, "argv", [*small, "--json", str(tmp_path / "out.json")])
    training.main()
    rows = json.loads((tmp_path / "out.json").read_text())["rows"]
    assert [row["name"] for row in rows] == list(training.ROWS)
    assert rows[0]["ratios"] == [1, 1]
    speeds = [[row[speed] for speed in training.SPEEDS] for row in rows]
    assert all(0 < whole < gradient for whole, gradient in speeds)
    assert capsys.readouterr().out.count("\n| ") == 1 + len(rows)


def test_a_step_changes_the_backbone_and_what_is_the_contenders_own(small: list[str]) -> None:
    args = training.parsed([*small[1:], "--rows", "lm,chain-2"])
    found, of_backbone = training.contenders(args)
    for contender in found.values():
        before = {name: parameter.clone() for name, parameter in contender.model.named_parameters()}
        contender.step(torch.arange(16)[None], of_backbone)
        same = {name for name, p in contender.model.named_parameters() if torch.equal(before[name], p)}
        assert same <= {"head.null_context"}


def test_an_unknown_row_is_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.setattr(sys, "argv", ["training.py", "--rows", "softmax"])
    with pytest.raises(SystemExit, match="2"):
        training.main()
    assert "error: --rows: softmax is none of transformers, lm" in capsys.readouterr().err
