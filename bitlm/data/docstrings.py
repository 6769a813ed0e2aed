"""Real English text that every installation already has: the docstrings of the standard library and of the packages
that ``bitlm`` itself needs at run time. Files are parsed, never imported. Test and development extras are left out, so
installing them changes nothing."""

import ast
import hashlib
import inspect
import re
import sys
import sysconfig
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from bitlm.errors import SourceError

DISTRIBUTION = "bitlm"
MIN_WORDS = 5
MIN_LETTERS = 0.65  # share of letters and spaces among all characters
MIN_FUNCTION_WORDS = 0.08  # share of English function words among all words
FUNCTION_WORDS = frozenset(
    "a an and are as at be been but by can do does for from has have if in into is it its may more not of on only or "
    "other should so some such than that the their then there these this to used using was when where which will with "
    "you your".split()
)
WORD = re.compile(r"[^\W\d_]+")


@dataclass(frozen=True)
class Package:
    """One walked distribution; ``files`` are relative to ``base``, sorted."""

    name: str
    version: str
    base: str
    files: tuple[str, ...]


def state() -> dict[str, Any]:
    """What the text depends on: the Python version and the walked distributions with theirs. Raises SourceError."""
    return {"kind": "docstrings", "packages": [f"{name}=={version}" for name, version, _ in _distributions()]}


def packages() -> list[Package]:
    """The standard library first, then the run-time dependency closure by name."""
    standard = Path(sysconfig.get_paths()["stdlib"])
    own = sorted(
        path.relative_to(standard).as_posix()
        for path in standard.rglob("*.py")
        if "site-packages" not in path.parts and "dist-packages" not in path.parts
    )
    found = []
    for name, version, distribution in _distributions():
        if distribution is None:
            found.append(Package(name, version, str(standard), tuple(own)))
            continue
        files = sorted(str(file) for file in distribution.files or () if file.suffix == ".py" and ".." not in file.parts)
        found.append(Package(name, version, str(distribution.locate_file("")), tuple(files)))
    return found


def _distributions() -> list[tuple[str, str, metadata.Distribution | None]]:
    version = ".".join(map(str, sys.version_info[:3]))
    return [("python", version, None), *((name, found.version, found) for name, found in sorted(_closure().items()))]


def _closure() -> dict[str, metadata.Distribution]:
    """Installed distributions reachable from ours through requirements whose markers hold; ours is left out."""
    try:
        metadata.distribution(DISTRIBUTION)
    except metadata.PackageNotFoundError:
        raise SourceError(f"the docstrings source needs the package {DISTRIBUTION} installed: pip install -e .") from None
    found: dict[str, metadata.Distribution] = {}
    seen: set[tuple[str, str]] = set()
    pending = [(DISTRIBUTION, "")]
    while pending:
        name, extra = pending.pop()
        if (name, extra) in seen:
            continue
        seen.add((name, extra))
        try:
            distribution = metadata.distribution(name)
        except metadata.PackageNotFoundError:
            continue  # the state names what was walked, so an absent package is never unnoticed
        found[name] = distribution
        for line in distribution.requires or ():
            requirement = Requirement(line)
            if requirement.marker is None or requirement.marker.evaluate({"extra": extra}):
                pending += [(canonicalize_name(requirement.name), each) for each in ("", *requirement.extras)]
    del found[DISTRIBUTION]
    return found


def chunks(found: list[Package], files_per_chunk: int = 200) -> Iterator[tuple[Package, ...]]:
    """Cut the walk into pieces of work of about the same size, in order."""
    pending: list[Package] = []
    room = files_per_chunk
    for package in found:
        rest = package.files
        while rest:
            pending.append(Package(package.name, package.version, package.base, rest[:room]))
            room -= len(rest[:room])
            rest = rest[files_per_chunk if not pending else len(pending[-1].files) :]
            if room == 0:
                yield tuple(pending)
                pending, room = [], files_per_chunk
    if pending:
        yield tuple(pending)


def extract(chunk: tuple[Package, ...]) -> list[dict[str, Any]]:
    """English docstrings of one chunk in order of package, path and line, as rows with FineWeb's columns."""
    rows = []
    for package in chunk:
        for file in package.files:
            for line, text in _docstrings(Path(package.base, file)):
                score = english_score(text)
                if score > 0:
                    rows.append(_row(package, file, line, text, score))
    return rows


def english_score(text: str) -> float:
    """Share of English function words, or 0 where the text is too short, too little of it is letters, or the share is
    too small to be English prose."""
    words = WORD.findall(text)
    letters = sum(map(len, words)) + text.count(" ") + text.count("\n")
    if len(words) < MIN_WORDS or letters < MIN_LETTERS * len(text):
        return 0.0
    share = sum(word.lower() in FUNCTION_WORDS for word in words) / len(words)
    return share if share >= MIN_FUNCTION_WORDS else 0.0


def normalized(text: str) -> str:
    return " ".join(text.split())


def _docstrings(path: Path) -> Iterator[tuple[int, str]]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # invalid escapes in other people's strings
            tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError, RecursionError):
        return  # templates and tests of the standard library hold files that are not Python on purpose
    for node in ast.walk(tree):
        if not isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        text = ast.get_docstring(node, clean=False)
        if text:
            yield getattr(node, "lineno", 0), inspect.cleandoc(text)
