"""The lead baseline: the first sentences of a document (XSum's LEAD takes one), and the sentence splitter that it uses.

The splitter is a rule and not a model, so that it needs no download:

- a blank line ends a sentence. So does every line break of a text that has a line of over ``WRAPPED`` characters (web
  text, where a line is a paragraph or a headline); in a text wrapped at shorter lines a line break is a space;
- within a paragraph a sentence ends at ``.``, ``!``, ``?`` or ``…`` (closing quotes and brackets included) followed by
  white space and a capital, a digit or an opening mark, unless the word before a full stop is a known abbreviation or a
  single initial.
"""

import re

WRAPPED = 120

_ABBREVIATION = re.compile(
    r"mrs?|ms|dr|prof|rev|hon|st|sir|messrs|mme|jr|sr"
    r"|gen|col|lt|sgt|capt|cmdr|maj|gov|sen|rep|pres|supt|det|insp"
    r"|e\.g|i\.e|cf|vs|viz|al|approx|ca|eqs?|figs?|refs?|sec|vol|ch|pp|nos|op|eds?"
    r"|inc|ltd|co|corp|jan|feb|mar|apr|jun|jul|aug|sept?|oct|nov|dec"
)
_PARAGRAPH = re.compile(r"\n[ \t\r]*\n")
_END = re.compile(r"""[.!?…]+["'”’)\]]*(?=\s+["'“‘(\[`]*[A-Z0-9À-ÖØ-Þ])""")
_LAST_WORD = re.compile(r"[\w.]+$")


def sentences(text: str) -> list[str]:
    """The sentences of ``text`` in order, white space collapsed, none empty."""
    result = []
    web = max(map(len, text.split("\n"))) > WRAPPED
    for paragraph in text.split("\n") if web else _PARAGRAPH.split(text):
        paragraph = " ".join(paragraph.split())
        start = 0
        for end in _END.finditer(paragraph):
            if not _abbreviated(paragraph[start : end.start()], end.group()):
                result.append(paragraph[start : end.end()])
                start = end.end() + 1
        result.append(paragraph[start:])
    return [sentence for sentence in result if sentence]


def lead(document: str, count: int = 1) -> str:
    """The first ``count`` sentences of a document, joined by a space; all if it has fewer."""
    return " ".join(sentences(document)[:count])


def _abbreviated(before: str, mark: str) -> bool:
    if mark != ".":
        return False
    word = _LAST_WORD.search(before)
    if word is None:
        return False
    # "J. Smith" and "U.S. Senate" go on; a lone "I" at the end of a sentence is rarer than an initial.
    last = word.group().lower().lstrip(".")
    return bool(_ABBREVIATION.fullmatch(last)) or all(len(part) == 1 and part.isalpha() for part in last.split("."))
