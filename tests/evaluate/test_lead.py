from pathlib import Path

import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bitlm.evaluate.lead import lead, sentences


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("One. Two! Three? Four", ["One.", "Two!", "Three?", "Four"]),
        ("Mr. Smith met Dr. J. R. Jones. They spoke.", ["Mr. Smith met Dr. J. R. Jones.", "They spoke."]),
        ("The U.S. Senate voted. It passed.", ["The U.S. Senate voted.", "It passed."]),
        ("It rose 3.5 per cent. Shares fell.", ["It rose 3.5 per cent.", "Shares fell."]),
        ('He said: "Stop." She did not.', ['He said: "Stop."', "She did not."]),
        ("Use it, e.g. Tuple or list. Then go.", ["Use it, e.g. Tuple or list.", "Then go."]),
        ("Call os.path.join first. See below.", ["Call os.path.join first.", "See below."]),
        ("Wait... Now.", ["Wait...", "Now."]),
        (
            "Return the mean of\nthe Values given. Raise\nValueError if empty.",
            ["Return the mean of the Values given.", "Raise ValueError if empty."],
        ),
        ("A heading\n\nThen text. More.", ["A heading", "Then text.", "More."]),
        ("", []),
        (" \n\n \t", []),
    ],
)
def test_sentences(text: str, expected: list[str]) -> None:
    assert sentences(text) == expected


def test_in_web_text_a_line_is_a_paragraph() -> None:
    paragraph = "word " * 40 + "end"
    assert sentences(f"Share this with\n{paragraph}") == ["Share this with", paragraph]


def test_lead_takes_the_first_sentences() -> None:
    text = "One is here. Two is there. Three."
    assert lead(text) == "One is here."
    assert lead(text, 2) == "One is here. Two is there."
    assert lead(text, 9) == text


@given(st.text())
def test_splitting_loses_nothing_but_white_space(text: str) -> None:
    assert " ".join(sentences(text)).split() == text.split()


def test_first_sentences_are_those_of_the_published_lead_baseline(samples: Path) -> None:
    """Of the real documents, all but a few begin with the sentence that XSum's LEAD output shows for them."""
    import gzip
    import re

    def letters(text: str) -> str:
        return re.sub(r"[^a-z0-9]", "", text.lower().replace("-lrb-", "").replace("-rrb-", ""))

    def lines(name: str) -> list[str]:
        return gzip.decompress((samples / "xsum_outputs" / name).read_bytes()).decode().split("\n")[:-1]

    published = {
        letters(gold): output
        for gold, output in zip(lines("gold-test-sentences.txt.gz"), lines("lead-test-output.txt.gz"), strict=True)
    }
    rows = pq.read_table(samples / "xsum" / "test.parquet").to_pylist()
    pairs = [
        (row["document"], published[letters(row["summary"])]) for row in rows if letters(row["summary"]) in published
    ]
    assert len(pairs) > 850
    same = sum(letters(lead(document)) == letters(output) for document, output in pairs)
    assert same / len(pairs) > 0.97
