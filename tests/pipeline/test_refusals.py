"""What the command line refuses: mistakes and damaged artifacts, each in one line and with exit code 1."""

from pathlib import Path

import pytest
from chain import SETTINGS, assignments, bitlm

from bitlm_flows.cli import main


def test_a_stage_without_its_input_stops_before_any_work(tmp_path, capsys):
    assert main(["run", "tokens", "--root", str(tmp_path / "none"), *assignments(SETTINGS)]) == 1
    assert capsys.readouterr().err.strip() == (
        "bitlm: tokens/tiny needs corpus/tiny, which has not been made with this configuration: "
        "run `bitlm run corpus` first, add --upstream, or name one with --input corpus=ID"
    )
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["run", "tokens", "--input", "tokens=x"], "'x' is no artifact id"),
        (["run", "--set", "pretrain.stepz=1"], "pretrain.stepz is unknown; the nearest valid one is pretrain.steps"),
        (["run", "tokenz"], "stage 'tokenz' is unknown; the nearest valid one is tokens"),
        (["run", "--set", "corpus.source=/no/such/place.parquet"], "/no/such/place.parquet"),
        (["plan", "--set", "tokenizer.num_bits=3"], "tokenizer.num_bits = 3 is too small"),
        (["run", "tokens", "--input", "tokenz=tokens/tiny@v1"], "--input tokenz: no stage takes such an input"),
        (["artifacts", "show", "tokens/nothing@v1", "--root", "."], "tokens/nothing@v1"),
    ],
)
def test_mistakes_are_one_line_and_exit_code_1(tmp_path, monkeypatch, capsys, words, expected):
    monkeypatch.chdir(tmp_path)
    assert main(words) == 1
    printed = capsys.readouterr()
    assert expected in printed.err
    assert len(printed.err.strip().splitlines()) == 1
    assert not any(tmp_path.iterdir())


def _flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def _check_refusal(stderr: str, damaged: str) -> None:
    artifact, _, file = damaged.partition("@v1/")
    last = stderr.strip().splitlines()[-1]
    assert f"{artifact}@v1" in last
    assert file in last


@pytest.mark.usefixtures("prefect_url")
def test_one_flipped_byte_of_a_shard_is_refused_by_name(copy, capsys):
    damaged = "tokens/tiny@v1/shards/train/00000-000.arrow"
    _flip(copy / damaged)
    assert main(["run", "--root", str(copy), *assignments(SETTINGS)]) == 1
    _check_refusal(capsys.readouterr().err, damaged)


def test_one_flipped_byte_of_a_model_is_refused_by_name_and_exit_code(copy, tmp_path, prefect_url):
    damaged = "pretrain/tiny-diffusion@v1/model/model.safetensors"
    _flip(copy / damaged)
    run = bitlm(tmp_path, "run", "--root", str(copy), settings=SETTINGS, PREFECT_API_URL=prefect_url)
    assert run.returncode == 1
    _check_refusal(run.stderr, damaged)
