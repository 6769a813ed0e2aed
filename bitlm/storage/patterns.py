"""Patterns of paths, the same on every store: ``*``, ``?`` and ``[…]`` within a name, ``**`` for any number of folders,
``{a,b}`` for either.

Hidden are names that begin with ``.`` or ``~$``, folders that begin with ``_`` (``_temporary``, ``_delta_log``; not
``_key=value``), and below ``**`` such files too (``_SUCCESS``). A wildcard at the beginning of a name, and ``**``, do
not match them.
"""

import fnmatch
import re
from collections.abc import Iterable
from typing import NamedTuple

from bitlm.errors import SourceError

MOST_ALTERNATIVES = 1000
_ALTERNATIVES = re.compile(r"\{([^{}]*,[^{}]*)\}")
_MAGIC = re.compile(r"[*?\[]|" + _ALTERNATIVES.pattern)

States = frozenset[tuple[int, int]]
"""Where a path may have got to: (alternative, number of its names that are matched)."""


class _Name(NamedTuple):
    regex: re.Pattern[str]
    open: bool
    """Whether it begins with a wildcard."""


class Pattern:
    """A pattern of paths relative to a folder, to be advanced by one name at a time.

    What lies below a matched folder is matched too, if the folder's name ends in one of ``suffixes``: Spark writes a
    folder ``x.parquet`` of parts.
    """

    def __init__(self, pattern: str, suffixes: tuple[str, ...]) -> None:
        """Raises SourceError for too many alternatives."""
        self._suffixes = suffixes
        self._alternatives = [[_compile(name) for name in each.split("/")] for each in expand_braces(pattern)]
        self._below = len(self._alternatives)
        self._alternatives.append([None])
        self.start = self._closure({(i, 0) for i in range(self._below)})

    @property
    def depth(self) -> int | None:
        """The most names of a path that it matches without what lies below; None if there is no bound."""
        alternatives = self._alternatives[: self._below]
        return None if any(None in names for names in alternatives) else max(map(len, alternatives))

    def advance(self, states: States, name: str, folder: bool, hidden: bool = False) -> States:
        """What a path has got to with one more name; none if neither it nor, for a folder, anything below it can match.
        With ``hidden``, names that begin with ``_`` are matched like any other."""
        reached: set[tuple[int, int]] = set()
        for alternative, place in states:
            names = self._alternatives[alternative]
            if place == len(names):
                continue
            expected = names[place]
            if expected is None:
                if not _is_hidden(name, folder=True, underscore=not hidden):
                    reached.add((alternative, place))
                    if place + 1 == len(names):
                        reached.add((alternative, place + 1))
            elif expected.regex.fullmatch(name) and not (
                expected.open and _is_hidden(name, folder, underscore=not hidden)
            ):
                reached.add((alternative, place + 1))
        if not folder:
            return self._closure(reached)
        if self.matched(reached) and name.lower().endswith(self._suffixes):
            reached.add((self._below, 0))
        return self._closure({state for state in reached if not self._is_end(state)})

    def matched(self, states: Iterable[tuple[int, int]]) -> bool:
        return any(map(self._is_end, states))

    def match(self, path: str) -> tuple[bool, str | None]:
        """Whether a file's path matches; if not only because of a hidden name that begins with ``_``, which one."""
        *folders, file = path.split("/")
        states, lenient, found = self.start, self.start, None
        for name, folder in [*((name, True) for name in folders), (file, False)]:
            states, lenient = self.advance(states, name, folder), self.advance(lenient, name, folder, hidden=True)
            if found is None and states != lenient and not states:
                found = f"{name}/" if folder else name
        return self.matched(states), found if self.matched(lenient) else None

    def _is_end(self, state: tuple[int, int]) -> bool:
        return state[1] == len(self._alternatives[state[0]])

    def _closure(self, states: set[tuple[int, int]]) -> States:
        """``**`` also stands for no folder at all, but at the end for a file at least."""
        closed, pending = set(states), list(states)
        while pending:
            alternative, place = pending.pop()
            names = self._alternatives[alternative]
            if place + 1 < len(names) and names[place] is None and (alternative, place + 1) not in closed:
                closed.add((alternative, place + 1))
                pending.append((alternative, place + 1))
        return frozenset(closed)


def has_magic(path: str) -> bool:
    return _MAGIC.search(path) is not None


def split_base(pattern: str) -> tuple[str, str]:
    """(the folder before the first name with a wildcard, the rest)."""
    first = _MAGIC.search(pattern)
    base = pattern[: first.start()].rpartition("/")[0] if first else pattern
    return base, pattern[len(base) :].removeprefix("/")


def expand_braces(pattern: str) -> list[str]:
    """Raises SourceError for more than ``MOST_ALTERNATIVES``."""
    finished: list[str] = []
    pending = [pattern]
    while pending:
        each = pending.pop()
        inner = _ALTERNATIVES.search(each)
        if inner is None:
            finished.append(each)
        else:
            pending += [each[: inner.start()] + choice + each[inner.end() :] for choice in inner[1].split(",")]
        if len(finished) + len(pending) > MOST_ALTERNATIVES:
            raise SourceError(f"{pattern} stands for more than {MOST_ALTERNATIVES} patterns: use a wildcard")
    return sorted(set(finished))


def _compile(name: str) -> _Name | None:
    """None stands for ``**``."""
    return None if name == "**" else _Name(re.compile(fnmatch.translate(name)), name[:1] in ("*", "?", "["))


def _is_hidden(name: str, folder: bool, underscore: bool) -> bool:
    return name.startswith((".", "~$")) or (underscore and folder and name.startswith("_") and "=" not in name)
