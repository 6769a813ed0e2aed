"""Ctrl-C in the middle of a training, in the making of the root that all tests share."""

from chain import SETTINGS

from bitlm.artifacts.store import Store


def test_ctrl_c_ends_within_ten_seconds(finished):
    assert finished.interrupt["code"] == 130
    assert finished.interrupt["seconds"] < 10
    assert finished.interrupt["alive"] == []
    assert finished.left == ["corpus/tiny@v1", "tokenizer/tiny@v1", "tokens/tiny@v1"]


def test_the_next_run_continues(finished):
    resumed = Store(str(finished.root)).load("pretrain/tiny-lm-start@v1").metrics
    assert resumed["steps"] == SETTINGS["pretrain"]["steps"]
    assert resumed["resumed_from_step"] > 0
