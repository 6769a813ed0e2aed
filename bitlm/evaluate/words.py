"""The words that ROUGE compares, by either of two tokenizers.

``rouge`` is rouge-score's own: lower case, runs of a-z and 0-9, English stems. All else separates words, so it breaks
words at an accent, and of a text in another script it keeps nothing. ``unicode`` knows every script: a word is a run of
letters, digits and the marks that belong to them, in the compatible form (NFKC) and without case. Scripts that put no
spaces between words give a word for each character, as is usual for them. Nothing is stemmed.
"""

import re
import unicodedata
from collections.abc import Callable
from functools import cache, lru_cache
from typing import Literal

from nltk.stem.porter import PorterStemmer
from rouge_score import tokenize
from rouge_score.tokenizers import Tokenizer

WordTokenizer = Literal["rouge", "unicode"]
# Chinese and Japanese (Han, Kana, Bopomofo), Thai, Lao, Burmese, Khmer, and the Tai scripts.
_UNSPACED = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u1950-\u19df\u1a20-\u1aaf\ua9e0-\ua9ff\uaa60-\uaadf"
    "\u2e80-\u2fdf\u3005-\u3007\u3021-\u312f\u31a0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
    "\U00016fe0-\U00018dff\U0001aff0-\U0001b2ff\U00020000-\U0003ffff"
)
_JOINERS = re.compile("[\u00ad\u200c\u200d\u2060\ufeff]")  # inside of words, and not seen


def words(text: str) -> list[str]:
    """The words of ``text`` in any script."""
    plain = unicodedata.normalize("NFKC", text).casefold()
    return _word().findall(_JOINERS.sub("", unicodedata.normalize("NFKC", plain)))


def is_unread(text: str, tokenizer: WordTokenizer) -> bool:
    """Whether a tokenizer keeps nothing of a text that is not blank, or less than half of its letters and digits."""
    letters = [character for character in text.lower() if character.isalnum()]
    kept = sum(map(str.isascii, letters)) if tokenizer == "rouge" else len(letters)
    return bool(text.strip()) and (not kept or 2 * kept < len(letters))


@cache
def tokenizer(name: WordTokenizer) -> Tokenizer:
    """What a RougeScorer takes. The last few texts are remembered, because their words are counted before a score."""
    if name == "unicode":
        return _Tokenizer(words)
    stemmer = PorterStemmer()
    stemmer.stem = lru_cache(maxsize=2**17)(stemmer.stem)  # a word is stemmed once, which halves the time
    return _Tokenizer(lambda text: tokenize.tokenize(text, stemmer))


class _Tokenizer(Tokenizer):
    def __init__(self, split: Callable[[str], list[str]]) -> None:
        self._split = lru_cache(maxsize=8)(split)

    def tokenize(self, text: str) -> list[str]:
        return self._split(text)


@cache
def _word() -> re.Pattern[str]:
    marks = "".join(filter(_is_mark, map(chr, [*range(0x20000), *range(0xE0100, 0xE01F0)])))
    return re.compile(rf"[{_UNSPACED}](?<=\w)[{marks}]*+|(?:(?![{_UNSPACED}])[^\W_][{marks}]*+)++")


def _is_mark(character: str) -> bool:
    return unicodedata.category(character).startswith("M")
