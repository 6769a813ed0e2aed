"""Text from outside is shown as it is: no markup, no control characters, in any encoding; errors are one line."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from made import draft, make

from bitlm.artifacts import Store
from bitlm.data.reading.provenance import Document, TokenProvenance
from bitlm_flows.cli import main, tokens

HOSTILE = "[b]x[/q] :smile: \x1b[31m{0} %s"
SHOWN = r"[b]x[/q] :smile: \x1b[31m{0} %s"
BITLM = Path(sys.executable).with_name("bitlm")


@pytest.fixture(autouse=True)
def wide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "300")


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """Two artifacts, the second of other settings, below a folder of a hostile name."""
    store = Store(str(tmp_path / "r[/q]"))
    make(store)
    make(store, draft(identity={"separator": HOSTILE, f"{HOSTILE}key": "a\nb"}, metrics={"note": HOSTILE}))
    return store


@pytest.mark.parametrize(
    ("words", "shown"),
    [
        (["list"], "artifacts in {root}"),
        (["show", "corpus/tiny"], SHOWN),
        (["lineage", "corpus/tiny"], "corpus/tiny@v2"),
        (["diff", "corpus/tiny@v1", "corpus/tiny@v2"], f"corpus.{SHOWN}key"),
        (["verify"], "corpus/tiny@v2"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_artifacts(store: Store, words: list[str], shown: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["artifacts", *words, "--root", store.root]) == 0
    out = capsys.readouterr().out
    assert shown.replace("{root}", store.root) in out.replace("\\\\x1b", "\\x1b").replace("\\u001b", "\\x1b")
    assert "\x1b" not in out


def test_json_keeps_the_text(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["artifacts", "show", "corpus/tiny", "--root", store.root, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["metrics"] == {"note": HOSTILE}


def test_a_plan_tells_a_changed_setting_as_it_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = tmp_path / "r[/q]"
    make(Store(str(root)), draft("tokenizer", identity={"end_token": HOSTILE}))
    assert main(["plan", "tokenizer", "--root", str(root)]) == 0
    assert f"tokenizer.end_token: {SHOWN} → <|endoftext|>" in capsys.readouterr().out


def test_a_passage_and_its_source(capsys: pytest.CaptureFixture[str]) -> None:
    document = Document(f"{HOSTILE}\nid", 3, "f", f"/data/{HOSTILE}\nfile", "e", 9, 2)
    passage = TokenProvenance("tokens/tiny@v1", "train", 1, 7, "s", 1, f"{HOSTILE}\n\tone", HOSTILE, "\x9b2J", document)
    tokens._show(passage)
    lines = capsys.readouterr().out.splitlines()
    assert f"document  {SHOWN}\\nid: token 2 of 9" in lines
    assert f"source    /data/{SHOWN}\\nfile (ETag e), row 3" in lines
    assert lines[-2].rstrip() == SHOWN
    assert lines[-1].strip() == rf"one{SHOWN}\x9b2J"


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["artifacts", "show", "a\nb\x1b"], r"'a\nb\x1b' is no artifact id"),
        (["artifacts", "list", "--root", "no\nfolder"], r"/no\nfolder"),
        (["plan", "--no\nsuch"], r"--no\nsuch"),
        (["tokens", "inspect", "x", "--at", "a\nb%s"], r"'a\nb%s'; `bitlm tokens inspect --help` lists what it takes"),
        (["plan", "--set", "report.title=\udcff"], r"the argument report.title=\udcff is not text in utf-8"),
        ([], "the following arguments are required: COMMAND"),
    ],
    ids=repr,
)
def test_a_mistake_is_one_line(words: list[str], line: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 1
    told = capsys.readouterr().err
    assert told.startswith("bitlm: ")
    assert told.count("\n") == 1
    assert line in told


def call(shell: str, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"B": str(BITLM), "PYTHONIOENCODING": "utf-8"} | variables
    return subprocess.run(["bash", "-c", shell], env=environment, capture_output=True, text=True, timeout=60)


def test_an_encoding_without_the_characters(store: Store) -> None:
    make(store, draft(metrics={"naïve": 1, "note": "é…\U0001f600"}))
    shell = '"$B" artifacts lineage corpus/tiny --root "$R" && "$B" artifacts show corpus/tiny --json --root "$R"'
    done = call(shell, PYTHONIOENCODING="ascii", R=store.root)
    assert (done.returncode, done.stderr) == (0, "")
    lineage, _, shown = done.stdout.partition("\n")
    assert r"na\xefve 1" in lineage
    assert json.loads(shown)["metrics"]["note"] == "é…\U0001f600"


@pytest.mark.parametrize(
    ("shell", "told"),
    [
        ('"$B" artifacts show corpus/tiny --json --root "$R" | true; exit ${PIPESTATUS[0]}', ""),
        ('"$B" artifacts list --root "$R" | true; exit ${PIPESTATUS[0]}', ""),
        ('"$B" plan --json > /dev/full', "bitlm: standard output cannot be written: No space left on device\n"),
    ],
)
def test_an_output_that_cannot_be_written(store: Store, shell: str, told: str) -> None:
    many = {f"key{i}": "x" * 1000 for i in range(100)}  # more than a pipe holds
    make(store, draft(identity=many))
    done = call(shell, R=store.root)
    assert (done.returncode, done.stderr) == (1, told)
