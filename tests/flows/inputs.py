"""The files that the examples of docs/inputs.md name."""

from collections.abc import Callable
from pathlib import Path

FILES: dict[str, bytes | Callable[[Path], None]] = {}
"""Path below the examples' folder → content, or a function that writes it to the given path."""


def write_all(folder: Path) -> None:
    for name, content in FILES.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, bytes):
            path.write_bytes(content)
        else:
            content(path)
