import re
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
        (
            "The price is 3.5 kg. 4 are left. (All.) “Good.”",
            ["The price is 3.5 kg.", "4 are left.", "(All.)", "“Good.”"],
        ),
        ("He rose. šárka did not. Šárka did.", ["He rose. šárka did not.", "Šárka did."]),
        ("Es cierto. ¿Por qué? «Sí.» No.", ["Es cierto.", "¿Por qué?", "«Sí.»", "No."]),
        ("Он ушёл. А. С. Пушкин писал. Да.", ["Он ушёл.", "А. С. Пушкин писал.", "Да."]),
        ("你好。再见！“真的？”他说……走了。", ["你好。", "再见！", "“真的？”", "他说……走了。"]),
        ("「行きます。」と言った。はい", ["「行きます。」", "と言った。", "はい"]),
        ("यह है। वह नहीं।", ["यह है।", "वह नहीं।"]),
        ("आहे काम. ते घर.", ["आहे काम.", "ते घर."]),
        ("ما هذا؟ هذا كتاب. هذا قلم", ["ما هذا؟", "هذا كتاب.", "هذا قلم"]),
        ("यह ३.५ है", ["यह ३.५ है"]),
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
    assert "".join("".join(sentences(text)).split()) == "".join(text.split())
    assert all(sentence == " ".join(sentence.split()) != "" for sentence in sentences(text))


@given(st.text(st.sampled_from("aaB1.!? \n'\"()[]-é"), max_size=60))
def test_english_is_split_as_by_a_plain_search(text: str) -> None:
    """Each end is looked for from each character, and the word before it in the whole sentence."""
    end = re.compile(r"""[.!?…]+["'”’)\]]*(?=\s+["'“‘(\[`]*[A-Z0-9À-ÖØ-Þ])""")
    expected = []
    for paragraph in re.split(r"\n[ \t\r]*\n", text):
        paragraph, start = " ".join(paragraph.split()), 0
        for found in end.finditer(paragraph):
            word = re.search(r"[\w.]+$", paragraph[start : found.start()])
            parts = word[0].lstrip(".").split(".") if word else [""]
            if found.group() != "." or word is None or not all(len(part) == 1 and part.isalpha() for part in parts):
                expected.append(paragraph[start : found.end()])
                start = found.end() + 1
        expected.append(paragraph[start:])
    assert sentences(text) == [sentence for sentence in expected if sentence]


@pytest.mark.parametrize("unit", ["a", ".", ". ", ".)", "x.)) ", ").B ", "a. A. ", '. "', "\n", "\n ", "。", "é́", "'"])
def test_time_grows_with_the_length_of_a_text(unit: str) -> None:
    """Ends within the time of a test only if no part of a text is read again and again."""
    text = unit * (300_000 // len(unit))
    assert "".join("".join(sentences(f"{text}). B")).split()) == "".join(f"{text}).B".split())


def test_first_sentences_are_those_of_the_published_lead_baseline(samples: Path) -> None:
    """Of the real documents, all but a few begin with the sentence that XSum's LEAD output shows for them."""
    import gzip

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
