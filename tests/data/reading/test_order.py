from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bitlm.data.reading.order import Order, permute

SHARDS = st.lists(st.integers(0, 40), min_size=1, max_size=9).filter(any)


@given(st.integers(1, 3000), st.text(max_size=5))
def test_permute_is_a_permutation(size: int, key: str) -> None:
    assert sorted(permute(np.arange(size), size, key).tolist()) == list(range(size))


def test_permute_of_a_huge_range_stays_inside_and_is_keyed() -> None:
    size = 2**40 - 12345
    indices = np.arange(size - 1000, size)
    images = permute(indices, size, "a")
    assert images.min() >= 0
    assert images.max() < size
    assert len(set(images.tolist())) == 1000
    assert (images != permute(indices, size, "b")).all()


def test_permute_leaves_no_pattern() -> None:
    images = permute(np.arange(10_000), 10_000, "x")
    assert abs(np.corrcoef(np.arange(10_000), images)[0, 1]) < 0.05
    assert abs(np.corrcoef(images[:-1], images[1:])[0, 1]) < 0.05
    assert (np.diff(images) == 1).sum() < 10


@given(SHARDS, st.integers(0, 3), st.integers(1, 4))
@settings(deadline=None)
def test_each_epoch_holds_each_sequence_once_and_epochs_differ(sizes: list[int], seed: int, window: int) -> None:
    order = Order(sizes, seed, window)
    indices, epochs = order(range(3 * sum(sizes)))
    for epoch in range(3):
        part = slice(epoch * order.total, (epoch + 1) * order.total)
        assert sorted(indices[part].tolist()) == list(range(order.total))
        assert set(epochs[part].tolist()) == {epoch}


@given(SHARDS, st.integers(1, 4), st.data())
@settings(deadline=None)
def test_any_reader_sees_the_same_and_resuming_needs_only_the_step(
    sizes: list[int], window: int, data: st.DataObject
) -> None:
    world = data.draw(st.sampled_from([1, 2, 3, 8]))
    batch = world * data.draw(st.integers(1, 4))
    step = data.draw(st.integers(0, 40))
    whole = Order(sizes, 7, window)(range((step + 1) * batch))[0][step * batch :]
    fresh = Order(sizes, 7, window)
    share = batch // world
    ranks = [fresh(range(step * batch + rank * share, step * batch + (rank + 1) * share))[0] for rank in range(world)]
    assert np.concatenate(ranks).tolist() == whole.tolist()


@given(SHARDS, st.integers(1, 4))
@settings(deadline=None)
def test_a_window_touches_only_its_own_shards(sizes: list[int], window: int) -> None:
    indices = Order(sizes, 0, window)(range(sum(sizes)))[0]
    shard_of = np.repeat(np.arange(len(sizes)), sizes)[indices]
    seen: set[int] = set()
    position = 0
    while position < len(shard_of):
        inside = {int(shard_of[position])}
        # The shards of a window end together: walk until as many sequences passed as they hold.
        end = position
        while end - position < sum(sizes[shard] for shard in inside):
            inside.add(int(shard_of[end]))
            end += 1
        assert len(inside) <= window
        assert not inside & seen
        seen |= inside
        position = end


@given(SHARDS, st.integers(1, 4), st.data())
@settings(deadline=None)
def test_windows_name_the_shards_of_their_positions(sizes: list[int], window: int, data: st.DataObject) -> None:
    order, total = Order(sizes, 3, window), sum(sizes)
    begin = data.draw(st.integers(0, 2 * total))
    positions = np.arange(begin, begin + data.draw(st.integers(1, 2 * total)))
    shard_of = np.repeat(np.arange(len(sizes)), sizes)[order(positions)[0]]
    found = list(order.windows(positions))
    assert np.concatenate([here for here, _, _ in found]).tolist() == list(range(len(positions)))
    for here, now, soon in found:
        assert set(shard_of[here].tolist()) <= set(now)
        assert 1 <= len(now) <= window
        assert all(sizes[shard] for shard in [*now, *soon])
    for (_, _, soon), (_, now, _) in pairwise(found):
        assert not soon or soon == now, "the next one, unless that holds no sequence"


def test_the_seed_changes_the_order() -> None:
    assert Order([50, 50], 0, 2)(range(100))[0].tolist() != Order([50, 50], 1, 2)(range(100))[0].tolist()


def test_nothing_to_order_is_a_defect() -> None:
    with pytest.raises(AssertionError, match="no sequence"):
        Order([0, 0], 0, 1)(range(1))
