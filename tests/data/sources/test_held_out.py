import unicodedata
from collections.abc import Callable

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import event, given
from hypothesis import strategies as st
from made import draft, make

from bitlm.artifacts.store import Store
from bitlm.data.sources import held_out
from bitlm.data.sources.corpus import EXCLUDED_FILE, parquet_bytes
from bitlm.data.sources.held_out import INSIDE_CHARACTERS, HeldOut, held_out_table, load_held_out
from bitlm.data.sources.skeleton import project, projection_table
from bitlm.errors import ArtifactError

DOCUMENT = (
    "The café\u2019s owner, Zoë Muller, said on Friday that it won't re-open until 12 May; \u201cwe've had "
    "enough\u201d, she told the BBC\u2026 Her co-owner disagreed."
)
PAGE = f"Home | News\n\nShare this with\n\n{DOCUMENT}\n\nMore on this story: none."
# Of few letters, so that documents and pages share much; with and without letters of the first projections.
WORDS = st.sampled_from(["a", "the", "Zoë", "seat", "q1", "zz", "ein", "это", "한국", "x-ray", "2019", "tea"])


def found(documents: list[str], texts: list[str]) -> list[bool]:
    return HeldOut(held_out_table(documents)).find([text.encode() for text in texts]).tolist()


def plain(text: str) -> str:
    lower = unicodedata.normalize("NFKD", unicodedata.normalize("NFKD", text).upper().casefold())
    return "".join(c for c in lower if unicodedata.category(c) in ("Lu", "Ll", "Lt", "Lo", "Nd", "Nl", "No"))


def holds(document: str, text: str) -> bool:
    """By plain search."""
    bare, whole = plain(document), plain(text)
    return bare == whole != "" or (len(bare) >= INSIDE_CHARACTERS and bare in whole)


CHANGES: dict[str, Callable[[str], str]] = {
    "none": lambda text: text,
    "one more line break": lambda text: text.replace(". ", ".\n "),
    "white space": lambda text: " \t\n".join(text.split(" ")),
    "no white space": lambda text: "".join(text.split()),
    "wrapped": lambda text: "\r\n".join(text[i : i + 30] for i in range(0, len(text), 30)),
    "upper case": str.upper,
    "lower case": str.lower,
    "decomposed": lambda text: unicodedata.normalize("NFD", text),
    "full width": lambda text: "".join(chr(ord(c) + 0xFEE0) if "!" <= c <= "~" else c for c in text),
    "plain quotes": lambda text: text.translate({0x2019: "'", 0x201C: '"', 0x201D: '"', 0x2026: "..."}),
    "no accents": lambda text: text.replace("é", "e").replace("ë", "e"),
    "invisible": lambda text: "\u200b".join(text).replace("o", "o\u00ad"),
    "marked up": lambda text: "> **" + text.replace(", ", "**, _") + "_",
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("around", ["{}", "{}, it goes on", "Before it {}", PAGE])
def test_a_document_in_another_form_is_found(change: str, around: str) -> None:
    text = around.replace(DOCUMENT, "{}").replace("{}", CHANGES[change](DOCUMENT))
    assert found([DOCUMENT], [text, PAGE.replace(DOCUMENT, "")]) == [True, False]


@pytest.mark.parametrize(
    "other",
    [
        DOCUMENT.replace("12 May", "13 May"),
        DOCUMENT.replace("Friday", "Monday"),
        DOCUMENT[: len(DOCUMENT) - 2] + "n",
        DOCUMENT[1:],
        DOCUMENT[: len(DOCUMENT) // 2],
        "".join(reversed(DOCUMENT)),
    ],
)
def test_another_text_is_not(other: str) -> None:
    assert found([DOCUMENT], [other, PAGE.replace(DOCUMENT, other), f"{other} {other}"]) == [False] * 3


def test_a_document_over_two_pages_is_not_found() -> None:
    assert found([DOCUMENT], [DOCUMENT[:80], DOCUMENT[80:], DOCUMENT]) == [False, False, True]


@pytest.mark.parametrize("letter", ["e", "q", "7", "д", "語", "é"])
def test_only_as_a_whole_below_so_many_letters(letter: str) -> None:
    short, long = letter * (INSIDE_CHARACTERS - 1), letter * INSIDE_CHARACTERS
    assert found([short], [short, f"- {short}!", f"{letter} {short}", f"A {short}"]) == [True, True, False, False]
    assert found([long], [long, f"{letter} {long}", f"A {long}", short]) == [True, True, True, False]


def test_short_documents_and_those_without_letters_leave_everything_else() -> None:
    texts = ["Yes.", "yes", "No", "Oh yes.", "***", "!!!", "! ! !", "\u2014", "1", ""]
    assert found(["Yes.", "", "!!!", "\u2026" * 60], texts) == [
        True,
        True,
        False,
        False,
        False,
        True,
        True,
        False,
        False,
        True,
    ]
    assert found([], texts) == [False] * len(texts)
    assert HeldOut(held_out_table(["Yes."])).find([]).tolist() == []


@given(
    st.lists(st.lists(WORDS, min_size=1, max_size=30).map(" ".join), max_size=5),
    st.lists(st.lists(WORDS, max_size=40).map("-".join), min_size=1, max_size=5),
    st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4), st.sampled_from(sorted(CHANGES))), max_size=4),
)
def test_finding_equals_plain_search(
    documents: list[str], texts: list[str], placed: list[tuple[int, int, str]]
) -> None:
    for document, text, change in placed:
        if documents:
            changed = CHANGES[change](documents[document % len(documents)])
            texts[text % len(texts)] = f"{changed} {texts[text % len(texts)]}" if text % 2 else f"it {changed} a"
    expected = [any(holds(document, text) for document in documents) for text in texts]
    event(f"found: {any(expected)}")
    assert found(documents, texts) == expected


@given(st.integers(0, 2**32 - 1))
def test_repetitive_documents_and_texts_equal_plain_search(seed: int) -> None:
    """Of two or three letters, so that anchors are everywhere."""
    generator = np.random.default_rng(seed)

    def drawn(most: int) -> str:
        unit = "".join(generator.choice(list("abz"), generator.integers(1, 6)))
        text = list(unit * int(generator.integers(1, most)))
        text[generator.integers(len(text))] = "b"
        return "".join(text)

    documents = [drawn(40) for _ in range(4)]
    texts = [drawn(200) for _ in range(4)] + [f"{drawn(9)}{document}{drawn(9)}" for document in documents]
    assert found(documents, texts) == [any(holds(document, text) for document in documents) for text in texts]


def test_long_texts_are_compared_part_by_part(monkeypatch: pytest.MonkeyPatch) -> None:
    letters = np.random.default_rng(0).integers(97, 123, 3 * 2**16, np.uint8).tobytes().decode()
    document = letters[1000 : 2**17 + 5]
    changed = letters[: 2**16 + 7] + "!q" + letters[2**16 + 7 :]
    assert found([document], [letters, letters[:-1000], changed, letters[1001:]]) == [True, True, False, False]


def test_equal_polynomials_are_not_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    """A text that differs outside the anchor and the check, where the polynomials tell nothing."""
    monkeypatch.setattr(held_out, "_polynomials", lambda letters, starts, stops: (starts * 0, starts * 0))
    text = DOCUMENT.replace("disagreed", "disagraed").replace("owner", "awner")
    assert found([DOCUMENT], [text, DOCUMENT]) == [False, True]


def test_the_table_depends_on_the_set_alone_and_holds_no_text() -> None:
    documents = [DOCUMENT, "Yes.", PAGE, "a " * 60]
    table = held_out_table(documents)
    assert held_out_table([*reversed(documents), DOCUMENT.upper()]).equals(table, check_metadata=True)
    assert table.num_rows == 4
    assert not [part for part in (b"muller", b"owner", b"friday") if part in parquet_bytes(table).lower()]


def test_documents_that_share_their_beginning_are_told_apart() -> None:
    """Boilerplate is no anchor where a document has anything else."""
    begin = "Media playback is not supported on this device. Please turn on JavaScript. "
    documents = [f"{begin}Item number {n} of them was seen in the {n * 7919 % 1000} street." for n in range(500)]
    table = held_out_table(documents)
    assert len(set(table["anchor"].to_pylist())) > 450
    assert found(documents, [begin, f"{begin} Other", *documents]) == [False, False] + [True] * 500
    projected = project(begin.encode(), projection_table(int(table.schema.metadata[b"level"])))
    windows = {int.from_bytes(projected[i : i + 8].tobytes(), "little") for i in range(len(projected) - 7)}
    assert windows.isdisjoint(table["anchor"].to_pylist())


def test_on_real_pages(samples) -> None:
    pages = pq.read_table(samples / "fineweb" / "first_rows.parquet")["text"].to_pylist()[:150]
    documents = pq.read_table(samples / "xsum" / "test.parquet")["document"].to_pylist()
    finder = HeldOut(held_out_table(documents))
    assert not finder.find([page.encode() for page in pages]).any()
    half = [page[: len(page) // 2] for page in pages]
    mixed = [
        f"{begin}\n{CHANGES[change](document)}\n{begin}"
        for begin, document, change in zip(half, documents, [*CHANGES] * 20, strict=False)
    ]
    assert finder.find([text.encode() for text in mixed]).all()


def test_a_table_of_another_version_is_one_line(tmp_path) -> None:
    store = Store(str(tmp_path))
    old = pa.table({"text_sha256": ["00"]})
    record = make(store, draft("corpus"), {EXCLUDED_FILE: parquet_bytes(old)})
    with pytest.raises(
        ArtifactError, match=r"corpus/.*@v1 was made by another version of bitlm: run `bitlm run corpus`"
    ):
        load_held_out(store, record)
