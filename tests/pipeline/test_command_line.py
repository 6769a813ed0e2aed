"""The full chain by the command line: made once, then reused; and what the commands say of what was made."""

import json
import re
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from chain import SETTINGS, STEPS, assignments

from bitlm.artifacts.store import Store
from bitlm_flows.cli import main

ESCAPES = re.compile(r"\x1b\[[0-9;]*m")


@pytest.mark.usefixtures("prefect_url")
def test_a_second_run_reuses_everything_and_shows_the_result(finished, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "80")
    assert main(["run", "--root", str(finished.root), *assignments(SETTINGS)]) == 0
    printed = capsys.readouterr()
    progress = ESCAPES.sub("", printed.err)
    assert re.findall(r"^reused\s+(\S+)$", progress, re.M) == [f"{step}@v1" for step in STEPS]
    assert "making" not in progress
    for shown in (
        "ROUGE-1",
        "ROUGE-2",
        "ROUGE-L",
        "Diffusion head, fine-tuned",
        "LM head, fine-tuned",
        "Lead-1",
        "lineage",
    ):
        assert shown in printed.out
    for step in STEPS:  # on one line, no word broken
        assert re.search(rf"│ {step}@v1 +│ reused │", printed.out)
    page = Path(printed.out.strip().splitlines()[-1].split()[-1])
    assert page.read_text(encoding="utf8").startswith("<!doctype html>")


def test_the_plan_tells_what_changes_and_what_follows(finished, capsys):
    changed = {**SETTINGS, "finetune": {**SETTINGS["finetune"], "steps": 5}}
    assert main(["plan", "--json", "--root", str(finished.root), *assignments(changed)]) == 0
    steps = {step["step"]: step for step in json.loads(capsys.readouterr().out)}
    remade = {key for key, step in steps.items() if step["action"] == "make"}
    assert remade == {s for s in STEPS if s.startswith("finetune") or s.endswith("finetuned") or s.startswith("report")}
    assert steps["finetune/tiny-lm"]["reasons"] == ["finetune.steps: 4 → 5"]
    assert steps["pretrain/tiny-lm"]["artifact"] == "pretrain/tiny-lm@v1"


@pytest.mark.parametrize("columns", [80, 120])
def test_the_plan_for_people_breaks_no_word(finished, capsys, monkeypatch, columns):
    monkeypatch.setenv("COLUMNS", str(columns))
    changed = {**SETTINGS, "finetune": {**SETTINGS["finetune"], "steps": 5}}
    assert main(["plan", "--root", str(finished.root), *assignments(changed)]) == 0
    shown = capsys.readouterr().out
    assert max(map(len, shown.splitlines())) <= columns
    words = {*shown.split()}
    assert {
        "finetune.steps:",
        "inputs.evaluate:tiny-diffusion-finetuned:",
        "evaluate/tiny-diffusion-finetuned@v1",
    } <= words
    assert re.search(r"│ evaluate/tiny-diffusion-pretrained +│ reuse v1 │", shown)


@pytest.mark.usefixtures("prefect_url")
def test_a_single_stage_takes_a_given_input_and_prints_json(finished, capsys):
    words = ["run", "tokens", "--json", "--root", str(finished.root), "--input", "tokenizer=tokenizer/tiny@v1"]
    assert main([*words, *assignments(SETTINGS)]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert (summary["id"], summary["reused"]) == ("tokens/tiny@v1", True)
    assert summary["metrics"]["documents_in"] == Store(str(finished.root)).load("corpus/tiny").metrics["documents"]
    assert Path(summary["path"]).is_dir()


def test_generate_continues_a_prompt(finished, capsys):
    words = ["generate", "--model", "finetune/tiny-diffusion", "--root", str(finished.root)]
    words += ["--max-new-tokens", "8", "--json"]
    said = []
    for prompts in (["Return the"], ["Return the"], ["Return the", "A longer prompt beside it"]):
        assert main([*words, *(word for prompt in prompts for word in ("--prompt", prompt))]) == 0
        said.append(json.loads(capsys.readouterr().out)[0])
    assert said[0]["prompt"] == "Return the"
    assert said[0] == said[1] == said[2]


def test_predictions_score_as_the_record_says(finished, tmp_path, capsys):
    evaluated = Store(str(finished.root)).load("evaluate/tiny-lead")
    table = pq.read_table(finished.root / evaluated.id / "predictions.parquet")
    for column, file in (("text", "p.txt"), ("reference", "r.txt")):
        lines = "".join(f"{' '.join(text.split())}\n" for text in table[column].to_pylist())
        (tmp_path / file).write_text(lines, encoding="utf8")
    files = ["--predictions", str(tmp_path / "p.txt"), "--references", str(tmp_path / "r.txt")]
    assert main(["score", *files, "--json"]) == 0
    rouge1 = json.loads(capsys.readouterr().out)["rouge1"]["f1"]
    assert rouge1 == pytest.approx(evaluated.metrics["rouge1"], abs=1e-9)
