import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rouge_score.tokenizers import DefaultTokenizer

from bitlm.evaluate.words import is_unread, tokenizer, words

UNSPACED = ("CJK", "HIRAGANA", "KATAKANA", "BOPOMOFO", "THAI", "LAO", "MYANMAR", "KHMER", "TAI LE", "NEW TAI LUE")
LETTERS = "aZéß_ñ7½ﬁЯж日本かガｶ한ก็ำ๕ລາက်ខ្क्षिا٣'-.\u0301\u00ad\u200d \n"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Don’t PANIC, naïve_café!", ["don", "t", "panic", "naïve", "café"]),
        ("Straße STRASSE ﬁne", ["strasse", "strasse", "fine"]),
        ("Он ушёл в ДОМ", ["он", "ушёл", "в", "дом"]),
        ("हिन्दी में किताबें", ["हिन्दी", "में", "किताबें"]),
        ("我在2024年去了Paris。", ["我", "在", "2024", "年", "去", "了", "paris"]),
        ("カタカナ한국어 문장", ["カ", "タ", "カ", "ナ", "한국어", "문장"]),
        ("คนไทย มี", ["ค", "น", "ไ", "ท", "ย", "มี"]),
        ("می\u200cخواهم", ["میخواهم"]),
        ("👍 … —", []),
    ],
)
def test_words_of_many_scripts(text: str, expected: list[str]) -> None:
    assert words(text) == [unicodedata.normalize("NFKC", word) for word in expected]


@given(st.text(st.sampled_from(LETTERS) | st.characters(max_codepoint=0x17FF)))
def test_words_equal_a_walk_over_the_characters(text: str) -> None:
    assert words(text) == _walk(text)


def _walk(text: str) -> list[str]:
    text = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    found, is_open = [], False
    for character in text:
        if character in "\u00ad\u200c\u200d\u2060\ufeff":
            continue
        if unicodedata.category(character)[0] == "M" and found and found[-1]:
            found[-1] += character
            continue
        single = unicodedata.name(character, "").startswith(UNSPACED)
        if not character.isalnum():
            found.append("")
        elif single or not is_open or not found or not found[-1]:
            found.append(character)
        else:
            found[-1] += character
        is_open = character.isalnum() and not single
    return [word for word in found if word]


@given(st.text())
def test_the_tokenizer_rouge_is_that_of_rouge_score(text: str) -> None:
    assert tokenizer("rouge").tokenize(text) == DefaultTokenizer(use_stemmer=True).tokenize(text)


@pytest.mark.parametrize(
    ("text", "by_rouge", "by_unicode"),
    [
        ("the cat", False, False),
        ("naïve café", False, False),
        ("", False, False),
        ("  ", False, False),
        ("你好世界", True, False),
        ("2024年的第一天", True, False),
        ("Он сказал: ok", True, False),
        ("?!", True, True),
        ("👍", True, True),
    ],
)
def test_texts_of_which_little_is_kept(text: str, by_rouge: bool, by_unicode: bool) -> None:
    assert (is_unread(text, "rouge"), is_unread(text, "unicode")) == (by_rouge, by_unicode)
