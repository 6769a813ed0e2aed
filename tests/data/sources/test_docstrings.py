from pathlib import Path

import pytest

from bitlm.data.sources import docstrings
from bitlm.data.sources.docstrings import Package, chunks, english_score, extract

MODULE = '''"""The module says what it is for and how to use it."""


class Outer:
    """A class with a few words on the things that it holds."""

    def method(self):
        """Return the value of the thing that was
        given to it.

            indented
        """

        def inner():
            """It is an inner function, which is found as well."""


if True:
    async def late():
        """This one stands in a condition and is found too."""
else:
    def short():
        """Too short."""

async def german():
    """Diese Funktion liefert den Wert und sonst gar nichts weiter."""
'''


@pytest.fixture
def package(tmp_path: Path) -> Package:
    (tmp_path / "good.py").write_text(MODULE)
    (tmp_path / "broken.py").write_text('"""This is not a Python file, but it looks like one."""\ndef (:')
    (tmp_path / "raw.py").write_bytes(b'"""The bytes of this file are not valid UTF-8 \xff."""')
    return Package("thing", "1.0", str(tmp_path), ("broken.py", "good.py", "raw.py"))


def test_docstrings_of_any_depth_in_order_of_line(package: Package) -> None:
    found = extract(package)
    assert [(d.file, d.line) for d in found] == [("good.py", line) for line in (0, 4, 7, 14, 19)]
    assert found[2].text == "Return the value of the thing that was\ngiven to it.\n\n    indented"
    assert {d.package for d in found} == {"thing==1.0"}


@pytest.mark.parametrize(
    "source",
    [
        b"-" * 10**6 + b"1",
        b"not " * 10**5 + b"1",
        b"if 1:\n pass\n" + b"elif 1:\n pass\n" * 10**5,
        b"(" * 10**6,
        b"a" + b".b" * 10**5,
        b"\0",
        b"# coding: none such",
        b'"""' + b"Any of the words of it. " * 10**5 + b'"""',
        b'"""The half of a pair that is not of this: \\ud800"""',
    ],
    ids=lambda source: ascii(source[:8]),
)
def test_a_file_that_cannot_be_parsed_or_is_not_text_is_left_out(
    source: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(docstrings, "MAX_FILE_BYTES", 2 * 10**6)
    (tmp_path / "odd.py").write_bytes(source)
    (tmp_path / "plain.py").write_text('"""This is the text of a module, as it is."""')
    chunk = Package("odd", "1", str(tmp_path), ("odd.py", "plain.py"))
    assert [found.file for found in extract(chunk)] == ["plain.py"]


def test_chunks_hold_every_file_once(package: Package) -> None:
    packages = [package, Package("empty", "2", "/", ()), package]
    cut = list(chunks(packages, files_per_chunk=2))
    assert [c.files for c in cut] == [("broken.py", "good.py"), ("raw.py",)] * 2
    assert [d for c in cut for d in extract(c)] == extract(package) * 2


@pytest.mark.parametrize(
    "text",
    [
        "Too short.",
        "Diese Funktion liefert den Wert und sonst gar nichts weiter.",
        "x = [1, 2, 3]; the y == {4: 5}; if is",
    ],
)
def test_what_is_not_english_prose_is_left_out(text: str) -> None:
    assert english_score(text) == 0.0


def test_closure_has_what_runs_and_not_what_tests() -> None:
    listed = {line.split("==")[0] for line in docstrings.state()["packages"]}
    assert {"python", "torch", "ray", "transformers", "numpy"} <= listed
    assert listed.isdisjoint({"bitlm", "pytest", "hypothesis", "moto", "ruff"})


def test_walk_leaves_test_folders_and_other_packages_out() -> None:
    found = {package.name: package for package in docstrings.packages()}
    assert "json/decoder.py" in found["python"].files
    parts = {part for package in found.values() for file in package.files for part in file.split("/")}
    assert parts.isdisjoint({"test", "tests", "site-packages", ".."})
    assert all(Path(found[name].base, found[name].files[0]).is_file() for name in ("python", "numpy", "ray"))
