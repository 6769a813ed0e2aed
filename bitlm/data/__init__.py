"""Text to tokens: sources, checked rows, splits, tokenizer, packed shards, their order, and batches."""

from typing import Any


def __getattr__(name: str) -> Any:
    """``bitlm.data.as_dataset``, imported when it is first used: it loads pyarrow, which not every command needs."""
    if name == "as_dataset":
        from bitlm.data.view import as_dataset

        return as_dataset
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
