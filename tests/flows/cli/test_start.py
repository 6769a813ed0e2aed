"""Commands that do not need them do not load the packages that take seconds."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

CALL = """
import json, sys
from bitlm_flows.cli import main
try:
    code = main(sys.argv[1:])
except SystemExit as exit:  # of --help
    code = exit.code
slow = ("torch", "transformers", "ray", "prefect", "pyarrow.parquet", "rouge_score")
print(json.dumps([code, [name for name in slow if name in sys.modules]]))
"""


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["--help"], 0),
        (["artifacts", "list", "--root", "none"], 1),
        (["plan", "--preset", "tiny-article", "--root", "none"], 0),
        (["plan", "--preset", "tiny", "--root", "none"], 0),
        (["run", "tokenz"], 1),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else str(value),
)
def test_what_a_command_loads(tmp_path: Path, words: list[str], code: int) -> None:
    call = subprocess.run(
        [sys.executable, "-c", CALL, *words], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert json.loads(call.stdout.splitlines()[-1]) == [code, []]
