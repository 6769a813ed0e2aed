"""The files that the examples of docs/inputs.md name."""

from collections.abc import Callable
from pathlib import Path

TEXT = b'{"text": "A text of its own.", "id": 1}\n'
SUMMARIES = b'{"document": "A text of its own.", "summary": "A text.", "id": 1}\n'

FILES: dict[str, bytes | Callable[[Path], None]] = {
    "text.jsonl": TEXT,
    "no-test/train.jsonl": SUMMARIES,
    "no-test/dev.jsonl": SUMMARIES,
}
"""Path below the examples' folder → content, or a function that writes it to the given path."""


def write_all(folder: Path) -> None:
    for name, content in FILES.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, bytes):
            path.write_bytes(content)
        else:
            content(path)
