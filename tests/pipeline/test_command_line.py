"""The full chain by the command line: made once, then reused; refused where a byte changed; continued after Ctrl-C."""

import json
import os
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path

import psutil
import pyarrow.parquet as pq
import pytest
from chain import BIN, SETTINGS, STEPS, assignments, bitlm, environment

from flows.cli import main

ESCAPES = re.compile(r"\x1b\[[0-9;]*m")


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def made(home) -> list[dict]:
    run = bitlm(home, "run", "--json", "--root", "first", settings=SETTINGS)
    assert run.returncode == 0, run.stderr[-3000:]
    return json.loads(run.stdout)


@pytest.fixture
def copy(home, made, tmp_path) -> Path:
    shutil.copytree(home / "first", tmp_path / "copy")
    return tmp_path / "copy"


def test_every_step_is_made_once(home, made):
    assert [summary["id"] for summary in made] == [f"{step}@v1" for step in STEPS]
    assert not any(summary["reused"] for summary in made)
    assert not (home / "first" / ".work").exists()


def test_a_second_run_reuses_everything_and_shows_the_result(home, made):
    run = bitlm(home, "run", "--root", "first", settings=SETTINGS, COLUMNS="120")
    assert run.returncode == 0, run.stderr[-3000:]
    told = ESCAPES.sub("", run.stderr)
    assert re.findall(r"^reused\s+(\S+)$", told, re.M) == [f"{step}@v1" for step in STEPS]
    assert "making" not in told
    for shown in (
        "ROUGE-1",
        "ROUGE-2",
        "ROUGE-L",
        "Diffusion head, fine-tuned",
        "LM head, fine-tuned",
        "Lead-1",
        "lineage",
    ):
        assert shown in run.stdout
    page = Path(run.stdout.strip().splitlines()[-1].split()[-1])
    assert page.read_text(encoding="utf8").startswith("<!doctype html>")


def test_the_plan_tells_what_changes_and_what_follows(home, made, capsys):
    changed = {**SETTINGS, "finetune": {**SETTINGS["finetune"], "steps": 5}}
    assert main(["plan", "--json", "--root", str(home / "first"), *assignments(changed)]) == 0
    steps = {step["step"]: step for step in json.loads(capsys.readouterr().out)}
    remade = {key for key, step in steps.items() if step["action"] == "make"}
    assert remade == {s for s in STEPS if s.startswith("finetune") or s.endswith("finetuned") or s.startswith("report")}
    assert steps["finetune/tiny-lm"]["reasons"] == ["finetune.steps: 4 → 5"]
    assert steps["pretrain/tiny-lm"]["artifact"] == "pretrain/tiny-lm@v1"


def test_a_single_stage_takes_a_given_input_and_prints_json(home, made):
    run = bitlm(
        home, "run", "tokens", "--json", "--root", "first", "--input", "tokenizer=tokenizer/tiny@v1", settings=SETTINGS
    )
    assert run.returncode == 0, run.stderr[-3000:]
    summary = json.loads(run.stdout)
    assert (summary["id"], summary["reused"]) == ("tokens/tiny@v1", True)
    assert summary["metrics"]["documents_in"] == made[0]["metrics"]["documents"]
    assert Path(summary["path"]).is_dir()


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
    told = capsys.readouterr()
    assert expected in told.err
    assert len(told.err.strip().splitlines()) == 1
    assert not any(tmp_path.iterdir())


def _flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(
    "damaged", ["tokens/tiny@v1/shards/train/00000-000.arrow", "pretrain/tiny-diffusion@v1/model/model.safetensors"]
)
def test_one_flipped_byte_is_refused_by_name(home, copy, damaged):
    _flip(copy / damaged)
    run = bitlm(home, "run", "--root", str(copy), settings=SETTINGS)
    artifact, _, file = damaged.partition("@v1/")
    assert run.returncode == 1
    last = run.stderr.strip().splitlines()[-1]
    assert f"{artifact}@v1" in last
    assert file in last


def test_generate_continues_a_prompt(home, made, capsys):
    words = [
        "generate",
        "--model",
        "finetune/tiny-diffusion",
        "--root",
        str(home / "first"),
        "--max-new-tokens",
        "8",
        "--json",
    ]
    said = []
    for prompts in (["Return the"], ["Return the"], ["Return the", "A longer prompt beside it"]):
        assert main([*words, *(word for prompt in prompts for word in ("--prompt", prompt))]) == 0
        said.append(json.loads(capsys.readouterr().out)[0])
    assert said[0]["prompt"] == "Return the"
    assert said[0] == said[1] == said[2]


def test_predictions_score_as_the_record_says(home, made, capsys):
    evaluated = next(s for s in made if s["id"] == "evaluate/tiny-lead@v1")
    table = pq.read_table(Path(evaluated["path"]) / "predictions.parquet")
    for column, file in (("text", "p.txt"), ("reference", "r.txt")):
        (home / file).write_text(
            "".join(f"{' '.join(text.split())}\n" for text in table[column].to_pylist()), encoding="utf8"
        )
    assert main(["score", "--predictions", str(home / "p.txt"), "--references", str(home / "r.txt"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["rouge1"]["f1"] == pytest.approx(
        evaluated["metrics"]["rouge1"], abs=1e-9
    )


def test_ctrl_c_ends_within_ten_seconds_and_the_next_run_continues(home, copy):
    for gone in ("pretrain", "finetune", "evaluate", "report"):
        shutil.rmtree(copy / gone)
    execution = {"cpus_per_worker": 1, "checkpoint_every": 25}
    longer = {"heads": ["diffusion"], "init_from": None, "steps": 200, "execution": execution}
    slow = {**SETTINGS, "pretrain": {**SETTINGS["pretrain"], **longer}}
    command = [str(BIN / "bitlm"), "run", "pretrain", "--root", str(copy), *assignments(slow)]
    run = subprocess.Popen(
        command, env=environment(home), stderr=subprocess.PIPE, text=True, start_new_session=True, cwd=home
    )
    _wait_for(lambda: list(copy.glob(".work/pretrain/*/scratch/checkpoints/*/checkpoint.json")), 300)
    processes = psutil.Process(run.pid).children(recursive=True)
    began = time.monotonic()
    os.killpg(run.pid, signal.SIGINT)
    run.communicate(timeout=30)
    assert time.monotonic() - began < 10
    assert run.returncode == 130
    _, alive = psutil.wait_procs(processes, timeout=3)
    assert not alive
    assert not (copy / "pretrain").exists()
    short = bitlm(home, "run", "pretrain", "--json", "--root", str(copy), settings=slow)
    assert short.returncode == 0, short.stderr[-3000:]
    resumed = json.loads(short.stdout)
    assert resumed["metrics"]["steps"] == 200
    assert resumed["metrics"]["resumed_from_step"] > 0


def _wait_for(condition, seconds: float) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come to that"
        time.sleep(0.1)
