"""fastokens against ``tokenizers``, loaded here from the same file without the code under test."""

import json
from functools import cache
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from bitlm.config import TokenizerConfig
from bitlm.data.shards.engine import Encoded, TextEncoder
from bitlm.data.shards.tokenizer import train

PLAIN = "The fox said: it's 3.14, isn't it? We'll see -- DON'T ask. "
LITERALS = ["<|endoftext|>", "<think> a </think>", "x<|im_start|>user\n", "<|pad|><tool_call>", "<|endof<|endoftext|>"]
TORTURE = [
    "",
    " ",
    "   ",
    "\t\n",
    "\r\n\r\n",
    "\0",
    "a\0b\0\0c",
    "\ufeffBOM",
    "\u2028\u2029\u0085",
    "\u00a0\u3000\u200b\u200d",
    "e\u0301\u0301\u0323 \u0301 alone",
    "\u1aeb\u0301 \u1df6\u0301 q\u0307\u0323 \u0e31\u0e34 \U0001e4ec\u0301",
    "각 \u1100\u1161\u11a8 ᄀᄀ",
    "👩‍👩‍👧‍👦 🏳️‍🌈 👍🏽 🇩🇪🇫 ❤️",
    "\u0378\U000e0fff\U0010ffff\uffff\ue000",
    "naïve ﬁ ſ K İı ŉ ǆ",
    "漢字かな交じり文。한국어",
    "עברית العربية ١٢٣ हिन्दी ไทย",
    "I'LL i'Ll 'ſ 'S s'",
    "\x1b[31m\x7f\x80\x9f",
    *LITERALS,
    "a" * 70_000,
    "é" * 40_000,
    " " * 70_000,
    "\n" * 70_000,
    "1" * 50_000,
    "!?" * 40_000,
    "ab1 " * 30_000,
    "\u0301" * 5000,
    "\r\n" * 5000 + "x",
]


@cache
def own_bpe() -> bytes:
    return train([PLAIN, *LITERALS, "Return the value of the item.\n\n  indented"] * 5, TokenizerConfig(vocab_size=400))


@cache
def own() -> tuple[TextEncoder, Tokenizer]:
    return TextEncoder(own_bpe()), reference(own_bpe())


@pytest.fixture(scope="module")
def qwen3(samples: Path) -> tuple[TextEncoder, Tokenizer]:
    data = (samples / "qwen3" / "tokenizer.json").read_bytes()
    return TextEncoder(data), reference(data)


@pytest.fixture(params=["qwen3", "own"])
def pair(request: pytest.FixtureRequest) -> tuple[TextEncoder, Tokenizer]:
    return own() if request.param == "own" else request.getfixturevalue("qwen3")


def reference(data: bytes) -> Tokenizer:
    """The library's own tokenizer that knows no added token."""
    return Tokenizer.from_str(json.dumps(json.loads(data) | {"added_tokens": [], "post_processor": None}))


def lists(encoded: Encoded) -> list[list[int]]:
    assert encoded.ids.dtype == np.uint32
    assert encoded.lengths.sum() == len(encoded.ids)
    return [part.tolist() for part in np.split(encoded.ids, np.cumsum(encoded.lengths)[:-1])]


def test_torture_and_literal_special_tokens(pair: tuple[TextEncoder, Tokenizer]) -> None:
    encoder, library = pair
    assert encoder.engine == "fast"
    found = lists(encoder.encode(TORTURE))
    assert found == [library.encode(text, add_special_tokens=False).ids for text in TORTURE]
    for text, ids in zip(TORTURE, found, strict=True):
        normal = library.normalizer.normalize_str(text) if library.normalizer else text
        assert library.decode(ids, skip_special_tokens=False) == normal
        assert ids == [] or max(ids) < 151_643  # the first of Qwen3's added tokens
        assert "<|endoftext|>" not in map(library.id_to_token, ids)


def test_what_was_encoded_before_changes_nothing(pair: tuple[TextEncoder, Tokenizer]) -> None:
    encoder, library = pair
    start = (PLAIN * 100)[:5000] + " " * 700
    for end in (" ", "\n", "\tx", "y"):
        encoder.encode([start + "x" + PLAIN * 50])
        assert lists(encoder.encode([start + end])) == [library.encode(start + end, add_special_tokens=False).ids]


PIECES = st.sampled_from([*TORTURE[:25], *(chr(c) for c in range(0x300, 0x310)), "'s", "\n", " ", "a"])
TEXTS = st.text() | st.lists(PIECES, max_size=12).map("".join)


@given(st.lists(TEXTS, min_size=1, max_size=5))
@settings(max_examples=150, deadline=None)
def test_any_text(texts: list[str]) -> None:
    encoder, library = own()
    assert lists(encoder.encode(texts)) == [library.encode(text, add_special_tokens=False).ids for text in texts]


@given(texts=st.lists(TEXTS, min_size=1, max_size=5))
@settings(max_examples=150, deadline=None)
def test_any_text_with_qwen3(qwen3: tuple[TextEncoder, Tokenizer], texts: list[str]) -> None:
    encoder, library = qwen3
    assert lists(encoder.encode(texts)) == [library.encode(text, add_special_tokens=False).ids for text in texts]


def test_every_sample_document(qwen3: tuple[TextEncoder, Tokenizer], samples: Path) -> None:
    encoder, library = qwen3
    for folder, column in (("fineweb", "text"), ("xsum", "document"), ("xsum", "summary")):
        for path in sorted((samples / folder).glob("*.parquet")):
            texts = pq.read_table(path)[column].to_pylist()
            found = encoder.encode(texts)
            for start in range(0, len(texts), 500):  # a few at a time: the library keeps much for each
                want = library.encode_batch_fast(texts[start : start + 500], add_special_tokens=False)
                lengths = found.lengths[:start].sum(), found.lengths[: start + 500].sum()
                assert found.lengths[start : start + 500].tolist() == [len(one.ids) for one in want]
                assert found.ids[lengths[0] : lengths[1]].tolist() == [id for one in want for id in one.ids]


def test_a_tokenizer_that_fastokens_cannot_load_goes_by_the_reference() -> None:
    library = Tokenizer(models.BPE())
    library.pre_tokenizer = pre_tokenizers.Whitespace()
    library.train_from_iterator([PLAIN] * 3, trainers.BpeTrainer(vocab_size=80, show_progress=False))
    encoder = TextEncoder(library.to_str().encode())
    assert encoder.engine == "reference"
    texts = [PLAIN, "", "fox ask"]
    assert lists(encoder.encode(texts)) == [library.encode(text).ids for text in texts]
    assert TextEncoder(own_bpe(), "reference").engine == "reference"


def test_the_sample_finds_a_wrong_document_and_stops_when_enough_is_compared() -> None:
    encoder, _ = own()
    texts = [f"{PLAIN} {number}" for number in range(10)]
    right = encoder.encode(texts)
    ids = right.ids.copy()
    ids[right.lengths[:7].sum()] ^= 1
    wrong = Encoded(ids, right.lengths)
    assert encoder.difference(texts, right, range(10), 1e9) == (None, sum(map(len, texts)))
    assert encoder.difference(texts, wrong, range(10), 1e9)[0] == 7
    assert encoder.difference(texts, wrong, [0, 1, 7], 1) == (None, len(texts[0]))
    assert encoder.difference(texts, wrong, [0, 1, 7], 0) == (None, 0)
    long = ["word " * 20_000]
    assert encoder.difference(long, encoder.encode(long), [0], 1) == (None, 2**15)


def test_memory_is_bounded_however_many_words() -> None:
    """Over a million different words; what the engine keeps of them has a limit of a few thousand."""
    import psutil

    encoder, rng = own()[0], np.random.default_rng(0)

    def met(words: int) -> int:
        letters = rng.integers(97, 123, (words, 8), dtype=np.uint8)
        letters[:, 0] = 32
        encoder.encode([letters.tobytes().decode()])
        return psutil.Process().memory_info().rss

    before = max(met(200_000) for _ in range(2))
    assert max(met(200_000) for _ in range(6)) - before < 100e6
