from hypothesis import given
from hypothesis import strategies as st

from bitlm.train.validate import spread


@given(st.integers(1, 5000), st.integers(1, 300))
def test_validated_sequences_are_spread_over_the_whole_split(available: int, count: int) -> None:
    chosen = spread(available, count)
    assert len(chosen) == min(available, count)
    assert len(set(chosen)) == len(chosen)
    gaps = [after - before for before, after in zip(chosen, [*chosen[1:], available], strict=True)]
    assert chosen == sorted(chosen)
    assert all(gap in (available // len(chosen), available // len(chosen) + 1) for gap in gaps)
