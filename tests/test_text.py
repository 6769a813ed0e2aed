import unicodedata
from itertools import pairwise

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from markdown_it.token import Token

from bitlm.text import first_line, markdown, markdown_code, one_line, printable

HOSTILE = "a|b [b]`x`[/] <i>&amp; **c** _d_ ~~e~~ $f$ \\ [g](h) ![i](j) #k\n\x1b[31m\u202e\ud800`"
TEXTS = st.text(st.characters() | st.sampled_from("\\`*_[]<>#|~&$!()\n\t\x1b\x9b\u2028\ud800 "), max_size=40)
RENDERER = MarkdownIt("commonmark").enable(["table", "strikethrough"])


@given(TEXTS)
@example(HOSTILE)
def test_a_line_holds_no_character_that_moves_or_hides(text: str) -> None:
    shown = one_line(text)
    assert len(shown.splitlines()) <= 1
    assert not [c for c in shown if unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp")]
    assert not [c for c in shown if unicodedata.bidirectional(c) in ("RLO", "LRO", "RLE", "LRE", "PDF", "RLI", "LRI")]
    plain = "".join(c for c in text if c.isprintable())
    assert one_line(plain) == plain


@given(TEXTS)
def test_a_text_keeps_its_lines_and_tabs(text: str) -> None:
    assert printable(text) == "".join(c if c in "\n\t" else one_line(c) for c in text)


def test_escapes_are_pythons() -> None:
    assert one_line("a\nb\x1b[1m\ud800\u202e") == r"a\nb\x1b[1m\ud800\u202e"
    assert printable("a\nb\tc\r\x1b") == "a\nb\tc\\r\\x1b"


@given(TEXTS)
@example(HOSTILE)
def test_markdown_shows_the_text_and_nothing_else(text: str) -> None:
    expected = " ".join(one_line(text).split())
    cell = _inline(f"| head |\n| --- |\n| {markdown(text)} |", "td_open")
    assert _plain(cell) == expected
    assert _plain(_inline(f"# {markdown(text)}", "heading_open")) == expected


@given(TEXTS.filter(str.strip))
@example(HOSTILE)
def test_code_shows_the_text_and_nothing_else(text: str) -> None:
    (code,) = _inline(f"x {markdown_code(text)}", "paragraph_open").children[1:]
    assert code.type == "code_inline"
    assert code.content.strip() == one_line(text).strip()


def _inline(source: str, opening: str) -> Token:
    tokens = RENDERER.parse(source)
    return next(after for before, after in pairwise(tokens) if before.type == opening)


def _plain(inline: Token) -> str:
    assert {child.type for child in inline.children} <= {"text", "text_special"}
    return " ".join("".join(child.content for child in inline.children).split())


@pytest.mark.parametrize(
    ("error", "line"),
    [(ValueError(" a\nb"), "a"), (ValueError("\n\n b"), "b"), (ValueError(), "ValueError"), (OSError("\n"), "OSError")],
)
def test_the_first_line_of_an_error(error: Exception, line: str) -> None:
    assert first_line(error) == line
