"""Real English text that every installation already has: the docstrings of the standard library and of the packages
that ``bitlm`` itself needs at run time. Files are parsed, never imported. Test and development extras are left out, so
installing them changes nothing."""

import ast
import inspect
import re
import sys
import sysconfig
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cache
from importlib import metadata
from pathlib import Path, PurePath
from typing import Any, NamedTuple

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from bitlm.errors import SourceError

DISTRIBUTION = "bitlm"
STANDARD = "python"  # the standard library among the walked packages
SKIPPED_FOLDERS = frozenset({"test", "tests", "testing", "site-packages", "dist-packages"})
MAX_FILE_BYTES = 16 * 2**20  # parsing takes about a hundred times as much memory; no package has such a source file
MIN_WORDS = 5
MIN_LETTERS = 0.65  # share of letters and spaces among all characters
MIN_FUNCTION_WORDS = 0.08  # share of English function words among all words
_FUNCTION_WORDS = """
    a an and are as at be been but by can do does for from has have if in into is it its may more not of on only or
    other should so some such than that the their then there these this to used using was when where which will with you
    your
"""
FUNCTION_WORDS = frozenset(_FUNCTION_WORDS.split())
WORD = re.compile(r"[^\W\d_]+")


@dataclass(frozen=True)
class Package:
    """One walked distribution; ``files`` are relative to ``base``, sorted."""

    name: str
    version: str
    base: str
    files: tuple[str, ...]


class Docstring(NamedTuple):
    """``line`` is that of the definition (0 for a module); ``score`` the share of English function words."""

    package: str
    file: str
    line: int
    text: str
    score: float


def state() -> dict[str, Any]:
    """What the text depends on: the Python version and the walked distributions with theirs. Raises SourceError."""
    return {"kind": "docstrings", "packages": [f"{name}=={version}" for name, version, _ in _distributions()]}


def packages() -> list[Package]:
    """The standard library first, then the run-time dependency closure by name."""
    standard = Path(sysconfig.get_paths()["stdlib"])
    own = sorted(path.relative_to(standard) for path in standard.rglob("*.py"))
    walked = []
    for name, version, distribution in _distributions():
        if distribution is None:
            walked.append(Package(name, version, str(standard), _kept(own)))
        else:
            walked.append(Package(name, version, str(distribution.locate_file("")), _kept(distribution.files or ())))
    return walked


def _kept(files: Iterable[PurePath]) -> tuple[str, ...]:
    skipped = SKIPPED_FOLDERS | {".."}
    return tuple(sorted(file.as_posix() for file in files if file.suffix == ".py" and skipped.isdisjoint(file.parts)))


@cache
def _distributions() -> list[tuple[str, str, metadata.Distribution | None]]:
    version = ".".join(map(str, sys.version_info[:3]))
    return [(STANDARD, version, None), *((name, one.version, one) for name, one in sorted(_closure().items()))]


def _closure() -> dict[str, metadata.Distribution]:
    """Installed distributions reachable from ours through requirements whose markers hold; ours is left out."""
    try:
        metadata.distribution(DISTRIBUTION)
    except metadata.PackageNotFoundError:
        raise SourceError(f"source docstrings needs the package {DISTRIBUTION} installed: pip install -e .") from None
    reached: dict[str, metadata.Distribution] = {}
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
        reached[name] = distribution
        for line in distribution.requires or ():
            requirement = Requirement(line)
            if requirement.marker is None or requirement.marker.evaluate({"extra": extra}):
                pending += [(canonicalize_name(requirement.name), each) for each in ("", *requirement.extras)]
    del reached[DISTRIBUTION]
    return reached


def chunks(packages: Iterable[Package], files_per_chunk: int = 150) -> Iterator[Package]:
    """Cut the walk into pieces of work, in order."""
    for package in packages:
        for start in range(0, len(package.files), files_per_chunk):
            yield replace(package, files=package.files[start : start + files_per_chunk])


def extract(chunk: Package) -> list[Docstring]:
    """English docstrings of one chunk in order of path and line."""
    return [
        Docstring(f"{chunk.name}=={chunk.version}", file, line, text, score)
        for file in chunk.files
        for line, text in _docstrings(Path(chunk.base, file))
        if (score := english_score(text)) > 0
    ]


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
    if path.stat().st_size > MAX_FILE_BYTES:
        return
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # invalid escapes in other people's strings
            tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError, RecursionError, MemoryError):  # the parser's stack ends in the last one
        return  # templates among the packages are not Python on purpose
    for line, node in _definitions(tree):
        text = ast.get_docstring(node, clean=False)
        if text and _is_unicode(text):
            yield line, inspect.cleandoc(text)


def _is_unicode(text: str) -> bool:
    """Not so for one with half of a pair of surrogates, which escapes can write."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _definitions(tree: ast.Module) -> Iterator[tuple[int, Any]]:
    """The module, and its classes and functions at any depth, in order of line."""
    yield 0, tree
    pending: list[Any] = list(reversed(tree.body))
    while pending:
        node = pending.pop()
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield node.lineno, node
        for part in ("finalbody", "orelse", "handlers", "body"):
            inner = getattr(node, part, None)
            if isinstance(inner, list):
                pending += reversed(inner)
