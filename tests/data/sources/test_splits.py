import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bitlm.data.sources.splits import digest, fraction, text_split


def test_fraction_against_arithmetic_by_hand() -> None:
    key = digest("a text")
    assert key == hashlib.sha256(b"a text").digest()
    assert fraction(key) == pytest.approx(int(key.hex(), 16) / 2**256, abs=2**-50)
    assert fraction(b"\xff" * 32) < 1.0
    assert fraction(b"\x00" * 32) == 0.0


@given(st.binary(min_size=32, max_size=32), st.floats(0.01, 0.2), st.floats(0.01, 0.2))
def test_a_larger_fraction_keeps_what_was_in_validation(key: bytes, one: float, other: float) -> None:
    if text_split(key, min(one, other)) == "validation":
        assert text_split(key, max(one, other)) == "validation"


def test_share_is_about_the_fraction() -> None:
    splits = [text_split(digest(str(i)), 0.1) for i in range(10_000)]
    assert 850 < splits.count("validation") < 1150
