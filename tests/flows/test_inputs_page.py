"""Every example of docs/inputs.md, run as it stands.

An example is a block ``console``: lines with ``$`` are commands, the lines below one are printed by it in this order,
others perhaps between, and ``…`` stands for any text. A command fails, with exit code 1, if a line that begins
with ``bitlm:`` is below it. A command that sets variables runs in a process of its own, for at most a minute.
"""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import inputs
import pytest

# The first import of Prefect closes the streams of log handlers. absl, which rouge-score loads, may hold pytest's.
import bitlm_flows.stages  # noqa: F401
from bitlm_flows.cli import main

PAGE = Path(__file__).parents[2] / "docs" / "inputs.md"


class Command(NamedTuple):
    line: str
    printed: tuple[str, ...]


def _commands() -> list[Command]:
    commands = []
    for block in re.findall(r"^```console\n(.*?)^```", PAGE.read_text(encoding="utf8"), flags=re.DOTALL | re.MULTILINE):
        for part in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
            line, *printed = part.replace("\\\n", " ").splitlines()
            commands.append(Command(line, tuple(printed)))
    return commands


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("inputs")
    inputs.write_all(path)
    return path


@pytest.mark.usefixtures("ray_session", "prefect_url")
@pytest.mark.parametrize("command", _commands(), ids=lambda command: command.line)
def test_an_example_prints_what_the_page_says(command: Command, folder: Path, monkeypatch, capfd) -> None:
    monkeypatch.chdir(folder)
    monkeypatch.setenv("COLUMNS", "120")
    words = shlex.split(command.line)
    variables = dict(word.split("=", 1) for word in words[: words.index("bitlm")])
    arguments = words[len(variables) + 1 :]
    if variables:
        process = [str(Path(sys.executable).with_name("bitlm")), *arguments]
        code = subprocess.run(process, env=os.environ | variables, timeout=60, check=False).returncode
    else:
        code = main(arguments)
    shown = capfd.readouterr()
    lines = (shown.out + shown.err).splitlines()
    for expected in command.printed:
        pattern = re.escape(expected).replace("…", ".*")
        while lines and not re.fullmatch(pattern, lines[0].rstrip()):
            lines.pop(0)
        assert lines, f"{expected!r} is not in:\n{shown.out}{shown.err}"
    assert code == any(line.startswith("bitlm: ") for line in command.printed)
