"""The console on which everything is printed."""

from rich.console import Console


def console(*, stderr: bool = False) -> Console:
    """Nothing in a string is taken for markup or the name of an emoji: styles are given by ``Text`` and ``style``."""
    return Console(stderr=stderr, markup=False, emoji=False, highlight=False)
