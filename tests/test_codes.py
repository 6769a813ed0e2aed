"""Codes against bit-by-bit arithmetic and brute force."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bitlm.codes import decode, encode, min_bits, pack, unpack
from bitlm.errors import ConfigError
from bitlm.packing import unpack_codes


def naive_bits(token: int, num_bits: int) -> list[int]:
    return [int(digit) for digit in format(token, f"0{num_bits}b")]


def naive_pack(ids: list[int], num_bits: int) -> bytes:
    text = "".join(format(token, f"0{num_bits}b") for token in ids)
    return bytes(int(text[i : i + 8], 2) for i in range(0, len(text), 8))


@st.composite
def groups(draw: st.DrawFn) -> tuple[list[int], int]:
    num_bits = draw(st.integers(1, 32))
    tokens = st.integers(0, 2**num_bits - 1)
    size = 8 * draw(st.integers(0, 3))
    return draw(st.lists(tokens, min_size=size, max_size=size)), num_bits


@given(groups())
@settings(deadline=None, max_examples=200)
def test_packing_equals_a_bit_loop(given: tuple[list[int], int]) -> None:
    ids, num_bits = given
    packed = pack(np.array(ids, dtype=np.uint32), num_bits)
    assert packed.dtype == np.uint8
    assert packed.tobytes() == naive_pack(ids, num_bits)
    for buffer in (packed, packed.tobytes(), memoryview(packed.tobytes())):
        assert unpack(buffer, num_bits).tolist() == ids
    signs = unpack_codes(packed, num_bits)
    assert signs.tolist() == [[2 * bit - 1 for bit in naive_bits(token, num_bits)] for token in ids]


@pytest.mark.parametrize("num_bits", range(1, 33))
def test_every_width_packs_more_than_one_chunk(num_bits: int) -> None:
    rng = np.random.default_rng(num_bits)
    ids = rng.integers(0, 2**num_bits, 8 * 8200, dtype=np.uint32)
    packed = pack(ids, num_bits)
    assert len(packed) == len(ids) * num_bits // 8
    assert np.array_equal(unpack(packed, num_bits), ids)
    last = ids[-16:].tolist()
    assert packed[-2 * num_bits :].tobytes() == naive_pack(last, num_bits)


def test_all_embedding_rows_of_qwen3_round_trip_at_18_bits() -> None:
    ids = torch.arange(151_936)
    codes = encode(ids, 18)
    assert codes.shape == (151_936, 18)
    assert set(codes.unique().tolist()) == {-1.0, 1.0}
    assert torch.equal(decode(codes, 151_936), ids)
    assert torch.equal(decode(codes * torch.rand_like(codes).add(0.01), 151_936, void="nearest"), ids)


def test_most_significant_bit_first_and_neighbours_differ_in_one_bit() -> None:
    assert encode(torch.tensor([6]), 4).tolist() == [[-1, 1, 1, -1]]
    a, b = encode(torch.tensor([1000, 1001]), 18)
    assert (a != b).nonzero().flatten().tolist() == [17]


def test_all_32_bits_are_used() -> None:
    ids = torch.tensor([[0, 2**32 - 1], [2**31, 1]])
    assert torch.equal(decode(encode(ids, 32), 2**32), ids)


def test_void_corners_of_a_128k_vocabulary() -> None:
    ids = torch.arange(2**18)
    clamped = decode(encode(ids, 18), 128_000)
    void = ids >= 128_000
    assert int(void.sum()) == 134_144
    assert torch.equal(clamped[~void], ids[~void])
    assert set(clamped[void].tolist()) == {127_999}


def test_void_corners_of_a_128k_vocabulary_reach_a_token_by_the_fewest_flips() -> None:
    void = torch.arange(128_000, 2**18)
    reached = decode(encode(void, 18), 128_000, void="nearest")
    assert ((reached >= 0) & (reached < 128_000)).all()
    flips = sum((reached ^ void) >> bit & 1 for bit in range(18))
    one_flip = torch.stack([(void ^ 1 << bit) < 128_000 for bit in range(18)]).any(0)
    assert torch.equal(flips == 1, one_flip)
    assert (flips <= 2).all()  # of 17 bits, only those from 128,000 to 131,071 are void: one more 0 above bit 9 will do


@pytest.mark.parametrize(("vocab_size", "num_bits"), [(1, 3), (5, 3), (6, 3), (8, 3), (11, 4), (13, 5), (9, 6)])
def test_nearest_has_the_least_flip_cost(vocab_size: int, num_bits: int) -> None:
    values = torch.randn(300, num_bits, generator=torch.Generator().manual_seed(vocab_size))
    got = decode(values, vocab_size, void="nearest").tolist()
    for row, chosen in zip(values.tolist(), got, strict=True):
        costs = {
            token: sum(abs(x) for x, bit in zip(row, naive_bits(token, num_bits), strict=True) if bit != (x > 0))
            for token in range(vocab_size)
        }
        assert chosen in costs
        assert costs[chosen] == pytest.approx(min(costs.values()), abs=1e-6)


def test_min_bits() -> None:
    for vocab_size in range(1, 300):
        assert min_bits(vocab_size) == next(b for b in itertools.count(1) if 2**b >= vocab_size)
    assert min_bits(151_669) == 18
    assert min_bits(128_000) == 17


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: encode(torch.tensor([3, 8]), 3), "token id 8 does not fit in num_bits = 3"),
        (lambda: encode(torch.tensor([-1]), 3), "token id -1"),
        (lambda: encode(torch.tensor([1]), 33), "num_bits = 33"),
        (lambda: encode(torch.tensor([1]), 0), "num_bits = 0"),
        (lambda: decode(torch.zeros(2, 3), 9), "num_bits = 3 is too small for 9 ids: at least 4"),
        (lambda: decode(torch.zeros(2, 3), 8, void="round"), "void = 'round'"),
        (lambda: pack(np.arange(7, dtype=np.uint32), 4), "multiple of 8"),
        (lambda: pack(np.full(8, 16, dtype=np.uint32), 4), "token id 16"),
        (lambda: pack(np.full(8, -1), 4), "token id -1"),
        (lambda: unpack(b"12345", 4), "5 packed bytes"),
        (lambda: min_bits(0), "vocab_size = 0"),
    ],
)
def test_mistakes_are_told(call, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        call()
