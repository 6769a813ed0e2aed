import pytest

from bitlm_flows.cli import main


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--input", "tokens"], "--input tokens: expected ROLE=ID, for example tokens=tokens/tiny@v1"),
        (["--input", "tokens="], "--input tokens=: expected ROLE=ID"),
        (["--input", "=tokens/tiny"], "--input =tokens/tiny: expected ROLE=ID"),
        (["--input", "x=tokens/tiny"], "--input x: no stage takes such an input"),
        (["--input", "tokens=../x"], "'../x' is no artifact id"),
        (["--input", "tokens=a/b", "--input", "tokens=a/c"], "--input tokens is given twice, a/b and a/c: name one"),
        (["--preset", ""], "preset '' is unknown; presets: tiny"),
        (["--preset", "4B"], "preset '4B' is unknown; the nearest valid one is 4b"),
        (["--root", ""], "the root is empty: name a folder or a URL"),
        (["tokenz"], "stage 'tokenz' is unknown; the nearest valid one is tokens"),
        (["--set"], "argument --set: expected one argument"),
    ],
    ids=repr,
)
@pytest.mark.parametrize("command", ["plan", "run"])
def test_a_mistake_is_one_line(command: str, words: list[str], line: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([command, *words]) == 1
    told = capsys.readouterr().err
    assert told.startswith("bitlm: ")
    assert line in told
    assert told.count("\n") == 1
