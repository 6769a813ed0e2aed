"""Which split a text belongs to: a function of the text alone, so that a document never moves between splits."""

import hashlib

import numpy as np


def digest(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()


def fraction(digest: bytes) -> float:
    """A sha256 digest as a number in [0, 1)."""
    return (int.from_bytes(digest[:8], "big") >> 11) / 2**53


def fractions(heads: np.ndarray) -> np.ndarray:
    """The same for many: ``heads`` are the first 8 bytes of each digest, uint64 read as big-endian."""
    return (heads >> 11) / 2**53


def text_split(digest: bytes, validation_fraction: float) -> str:
    """``validation`` for the configured fraction of all texts, else ``train``."""
    return "validation" if fraction(digest) < validation_fraction else "train"
