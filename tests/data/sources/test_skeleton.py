import unicodedata

import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bitlm.data.sources import skeleton
from bitlm.data.sources.skeleton import LEVELS, SEPARATOR, kept_bytes, project, projection_table, skeletons

TEXTS = st.lists(
    st.one_of(
        st.text(max_size=5),
        st.sampled_from(
            ["e\u0301", "ﷺ", "한국어", "ｔｅｓｔ", "ẞ", "Ⱥ", "½", "𝔸", "🙂", "’", "ı", "ŉ", "ｶﾞ", "\0", "\u0345"]
        ),
        st.text("abcXYZ 019-", max_size=20),
    )
).map("".join)


def plain(text: str) -> bytes:
    """The skeleton of a whole text, by Unicode's own functions."""
    lower = unicodedata.normalize("NFKD", unicodedata.normalize("NFKD", text).upper().casefold())
    found = "".join(c for c in lower if unicodedata.category(c) in ("Lu", "Ll", "Lt", "Lo", "Nd", "Nl", "No"))
    return found.encode() or b"\0" + b"".join(text.encode().split())


@given(st.lists(TEXTS, max_size=4), st.integers(4, 40))
def test_a_skeleton_is_the_letters_and_digits_of_the_decomposed_text(texts: list[str], chunk: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(skeleton, "_CHUNK", chunk)
        assert skeletons([text.encode() for text in texts]) == [plain(text) for text in texts]


@pytest.mark.parametrize(
    "twin",
    [
        "THE CAFÉ'S \u201cfirst\u201d guests, who'd come.",
        "The cafe\u0301\u2019s  \u00abfirst\u00bb\u00a0guests\r\n\r\nwho\u2019d come",
        "The ca\u00adfé's fir\u200bst guests \u2014 who'd come!",
        "Ｔｈｅ ｃａｆé's ﬁrst guests who'd come",
        "**The** _café's_ first guests, who\u02bcd-\ncome.",
        "\ufeffThe\u2028café's\u3000first guests\u2026 who'd\tcome \U0001f642",
    ],
)
def test_what_does_not_count(twin: str) -> None:
    assert skeletons([twin.encode()]) == [b"thecafesfirstguestswhodcome"]


@pytest.mark.parametrize(
    "other", ["The first 11", "The first 1", "Then first 1O", "Тhe first 1", "The &amp; first 10", ""]
)
def test_what_does_count(other: str) -> None:
    assert skeletons([other.encode()]) != skeletons([b"The first 10"])


def test_cases_and_normal_forms_of_every_letter_share_a_skeleton() -> None:
    letters = [chr(c) for c in range(0x110000) if chr(c).lower() != chr(c).upper() or unicodedata.decomposition(chr(c))]
    forms = [
        str.upper,
        str.lower,
        *(lambda text, form=form: unicodedata.normalize(form, text) for form in ("NFC", "NFKD")),
    ]
    expected = skeletons([letter.encode() for letter in letters])
    for form in forms:
        found = skeletons([form(letter).encode() for letter in letters])
        wrong = [
            pair for pair in zip(letters, expected, found, strict=True) if pair[1][:1] != b"\0" and pair[1] != pair[2]
        ]
        assert not wrong


@given(TEXTS, st.integers(0, LEVELS - 1))
def test_a_projection_keeps_some_bytes_of_the_skeleton(text: str, level: int) -> None:
    (bare,) = skeletons([text.encode()])
    expected = bytes(byte for byte in bare if kept_bytes(level)[byte]) if bare[0] else b""
    assert project(text.encode(), projection_table(level)).tobytes() == expected
    joined = project(SEPARATOR.join([text.encode(), b"-", text.encode()]), projection_table(level)).tobytes()
    assert joined == SEPARATOR.join([expected, b"", expected])


def test_on_real_pages(samples) -> None:
    texts = pq.read_table(samples / "fineweb" / "complete_rows.parquet")["text"].to_pylist()
    assert skeletons([text.encode() for text in texts]) == [plain(text) for text in texts]
