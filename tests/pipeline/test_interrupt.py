"""Ctrl-C in the middle of a training, and the run after it: both are part of ``finished``."""

from chain import SETTINGS, STEPS


def test_ctrl_c_ends_within_ten_seconds(finished):
    assert finished.interrupt["code"] == 130
    assert finished.interrupt["seconds"] < 10
    assert finished.interrupt["alive"] == []
    assert finished.left == [f"{step}@v1" for step in ("corpus/tiny", "tokenizer/tiny", "tokens/tiny")]


def test_the_next_run_continues(finished):
    resumed = {summary["id"]: summary["metrics"] for summary in finished.summaries}["pretrain/tiny-lm@v1"]
    assert resumed["steps"] == SETTINGS["pretrain"]["steps"]
    assert resumed["resumed_from_step"] > 0
    assert {summary["id"] for summary in finished.summaries if summary["reused"]} == set(finished.left)
    assert [summary["id"] for summary in finished.summaries] == [f"{step}@v1" for step in STEPS]
    assert not (finished.root / ".work").exists()
