"""The lead baseline: the first sentences of the document (XSum's LEAD takes one), and the sentence splitter it stands on.

The splitter is a stated rule, not a model, so that it needs no download:

- a blank line ends a sentence. So does every line break of a text that has a line of over ``WRAPPED`` characters (web text,
  where a line is a paragraph or a headline); in a text wrapped at shorter lines a line break is a space;
- within a paragraph a sentence ends at ``.``, ``!``, ``?`` or ``…`` (closing quotes and brackets included) followed by white space
  and a capital, a digit or an opening mark, unless the word before a full stop is a known abbreviation or a single initial.
"""

import re

WRAPPED = 120

_ABBREVIATIONS = frozenset(
    "mr mrs ms dr prof rev hon st sir gen col lt sgt capt cmdr maj gov sen rep pres supt det insp jr sr messrs mme "
    "e.g i.e cf vs viz al approx ca eq eqs fig figs ref refs sec vol ch pp no nos op ed eds "
    "inc ltd co corp jan feb mar apr jun jul aug sep sept oct nov dec".split()
)
_PARAGRAPH = re.compile(r"\n[ \t\r]*\n")
_END = re.compile(r"""[.!?…]+["'”’)\]]*(?=\s+["'“‘(\[`]*[A-Z0-9À-ÖØ-Þ])""")
_LAST_WORD = re.compile(r"[\w.]+$")


def sentences(text: str) -> list[str]:
    """The sentences of ``text`` in order, white space collapsed, none empty."""
    found = []
    web = max(map(len, text.split("\n"))) > WRAPPED
    for paragraph in text.split("\n") if web else _PARAGRAPH.split(text):
        paragraph = " ".join(paragraph.split())
        start = 0
        for end in _END.finditer(paragraph):
            if not _abbreviated(paragraph[start : end.start()], end.group()):
                found.append(paragraph[start : end.end()])
                start = end.end() + 1
        found.append(paragraph[start:])
    return [sentence for sentence in found if sentence]


def lead(document: str, count: int = 1) -> str:
    """The first ``count`` sentences of a document, joined by a space (fewer where it has fewer)."""
    return " ".join(sentences(document)[:count])


def _abbreviated(before: str, mark: str) -> bool:
    if mark != ".":
        return False
    word = _LAST_WORD.search(before)
    if word is None:
        return False
    # "J. Smith" and "U.S. Senate" go on; a lone "I" at the end of a sentence is rarer than an initial.
    letters = word.group().lower().lstrip(".").split(".")
    return word.group().lower().lstrip(".") in _ABBREVIATIONS or all(len(part) == 1 and part.isalpha() for part in letters)
