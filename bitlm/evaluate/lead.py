"""The lead baseline: the first sentences of a document (XSum's LEAD takes one), and the sentence splitter that it uses.

The splitter is a rule and not a model, so that it needs no download:

- a blank line ends a sentence. So does every line break of a text that has a line of over ``WRAPPED`` characters (web
  text, where a line is a paragraph or a headline); in a text wrapped at shorter lines a line break is a space;
- within a paragraph a sentence ends at ``.``, ``!``, ``?`` or ``…`` (closing quotes and brackets included) followed by
  white space and a digit, an opening mark or a letter that is not a small one (a capital, or a letter of a script
  without capitals), unless the word before a full stop is a known abbreviation or a single initial;
- it also ends at a mark that ends nothing but sentences, whatever follows, such as ``。`` or ``।``.
"""

import re
import unicodedata
from itertools import takewhile

WRAPPED = 120

_ABBREVIATION = re.compile(
    r"mrs?|ms|dr|prof|rev|hon|st|sir|messrs|mme|jr|sr"
    r"|gen|col|lt|sgt|capt|cmdr|maj|gov|sen|rep|pres|supt|det|insp"
    r"|e\.g|i\.e|cf|vs|viz|al|approx|ca|eqs?|figs?|refs?|sec|vol|ch|pp|nos|op|eds?"
    r"|inc|ltd|co|corp|jan|feb|mar|apr|jun|jul|aug|sept?|oct|nov|dec"
)
_PARAGRAPH = re.compile(r"\n[ \t\r]*\n")
# Of Chinese and Japanese, Arabic and Urdu, the languages of India, Armenian, Amharic, Khmer and Burmese.
_FINAL = "。！？｡؟۔।॥։።፧។။"
_MARKS = f".!?…{_FINAL}"
# Possessive (++, *+), and from the first mark of a run only: time must not grow with the square of a run's length.
_END = re.compile(
    rf"""(?<![{_MARKS}])(?P<marks>[{_MARKS}]++)["'”’)\]»」』）】]*+(?=(?:\s["'“‘(\[`«„「『（【¿¡]*+(?P<next>\w))?)"""
)


def sentences(text: str) -> list[str]:
    """The sentences of ``text`` in order, white space collapsed, none empty."""
    result = []
    web = max(map(len, text.split("\n"))) > WRAPPED
    for paragraph in text.split("\n") if web else _PARAGRAPH.split(text):
        paragraph = " ".join(paragraph.split())
        start = 0
        for end in _END.finditer(paragraph):
            if _ends(end, start):
                result.append(paragraph[start : end.end()].strip())
                start = end.end()
        result.append(paragraph[start:].strip())
    return [sentence for sentence in result if sentence]


def lead(document: str, count: int = 1) -> str:
    """The first ``count`` sentences of a document, joined by a space; all if it has fewer."""
    return " ".join(sentences(document)[:count])


def _ends(mark: re.Match[str], start: int) -> bool:
    """Whether the sentence from ``start`` ends at a match of ``_END``."""
    if not set(_FINAL).isdisjoint(mark["marks"]):
        return True
    following = mark["next"]
    if following is None or not (following.isdecimal() or (following.isalpha() and not following.islower())):
        return False
    return mark.group() != "." or not _is_abbreviation(_last_word(mark.string, start, mark.start()))


def _last_word(text: str, start: int, end: int) -> str:
    """The letters, digits and full stops with which ``text[start:end]`` ends."""
    backwards = (text[i] for i in range(end - 1, start - 1, -1))
    return "".join(takewhile(_is_of_a_word, backwards))[::-1]


def _is_of_a_word(character: str) -> bool:
    return character in "._" or character.isalnum() or unicodedata.category(character).startswith("M")


def _is_abbreviation(word: str) -> bool:
    # "J. Smith" and "U.S. Senate" go on; a lone "I" at the end of a sentence is rarer than an initial.
    last = word.lower().lstrip(".")
    return bool(_ABBREVIATION.fullmatch(last)) or all(len(part) == 1 and part.isalpha() for part in last.split("."))
