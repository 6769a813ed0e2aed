"""Text from outside (paths, ids, settings, documents) as people are shown it, on a terminal and in Markdown.

Control characters move the cursor or change colours, and directional ones reorder what stands around them.
"""

import re

_CONTROL = r"\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff"
_IN_A_LINE = re.compile(f"[{_CONTROL}]")
_IN_TEXT = re.compile(rf"(?![\n\t])[{_CONTROL}]")
_MARKDOWN = re.compile(r"[\\`*_\[\]<>#|~&$]")


def one_line(text: str) -> str:
    """``text`` with its line breaks, control characters and lone surrogates as escapes, such as ``\\n``."""
    return _IN_A_LINE.sub(_escape, text)


def short(text: str, most: int = 80) -> str:
    """At most ``most`` characters of ``text``, and a sign where it was cut."""
    return text if len(text) <= most else f"{text[: most - 1]}…"


def first_line(error: Exception | Warning) -> str:
    """What an error says, up to its first line break; its type if it says nothing."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


def printable(text: str) -> str:
    """``one_line`` that keeps line breaks and tabs."""
    return _IN_TEXT.sub(_escape, text)


def markdown(text: str) -> str:
    """Markdown that shows ``text`` in one line as it is, also in a cell of a table."""
    return _MARKDOWN.sub(r"\\\g<0>", one_line(text))


def markdown_code(text: str) -> str:
    """``markdown`` in the typeface of code, outside of tables."""
    text = one_line(text)
    fence = "`" * (1 + max(map(len, re.findall("`+", text)), default=0))
    pad = " " if text.startswith("`") or text.endswith("`") else ""
    return f"{fence}{pad}{text}{pad}{fence}"


def _escape(character: re.Match[str]) -> str:
    return character[0].encode("unicode_escape").decode()
