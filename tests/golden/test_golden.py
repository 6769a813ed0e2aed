"""Losses, tokens, random draws and fingerprints are those that were recorded (``python -m tests.golden``)."""

import json
from typing import Any

import pytest
from cases import compute, difference, load


@pytest.fixture(scope="module")
def found() -> dict[str, Any]:
    return json.loads(json.dumps(compute()))


@pytest.mark.parametrize("part", ["training", "generation", "draws", "fingerprints"])
def test_nothing_changed(found: dict[str, Any], part: str) -> None:
    assert list(difference(load()[part], found[part], part)) == []


def test_a_change_is_seen() -> None:
    then = load()
    now = load()
    now["training"]["1 x lm"]["loss"][29] *= 1.0002
    now["draws"]["sample"][0] += 1e-7
    now["generation"]["lm"][0]["blocks"][0] = [49]
    now["fingerprints"]["tiny"]["report/tiny"] = "0"
    keys = [line.split(":")[0] for line in difference(then, now)]
    assert keys == ["draws.sample", "fingerprints.tiny.report/tiny", "generation.lm", "training.1 x lm.loss"]
