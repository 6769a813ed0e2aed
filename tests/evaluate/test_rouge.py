import gzip
import itertools
import json
import random
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bitlm.errors import SourceError
from bitlm.evaluate import rouge


def f1(matches: float, predicted: int, target: int) -> float:
    return 200 * matches / (predicted + target) if matches else 0.0


def longest_common_subsequence(a: list[str], b: list[str]) -> int:
    """By trying every subsequence of ``a``, longest first."""
    for length in range(len(a), 0, -1):
        for picked in itertools.combinations(a, length):
            rest = iter(b)
            if all(word in rest for word in picked):
                return length
    return 0


def ngram_matches(a: list[str], b: list[str], n: int) -> int:
    grams = [Counter(tuple(words[i : i + n]) for i in range(len(words) - n + 1)) for words in (a, b)]
    return (grams[0] & grams[1]).total()


words = st.lists(st.sampled_from(["a", "ox", "cat", "dog", "sat"]), max_size=8)


@given(words, words)
def test_figures_equal_counting_by_hand(predicted: list[str], target: list[str]) -> None:
    got = rouge.score_pairs([" ".join(predicted)], [" ".join(target)])[0]
    unigrams = f1(ngram_matches(predicted, target, 1), len(predicted), len(target))
    bigrams = f1(ngram_matches(predicted, target, 2), max(len(predicted) - 1, 0), max(len(target) - 1, 0))
    longest = f1(longest_common_subsequence(predicted, target), len(predicted), len(target))
    np.testing.assert_allclose(got, [unigrams, bigrams, longest, longest], atol=1e-9)


def test_words_over_three_letters_are_stemmed() -> None:
    assert rouge.score_pairs(["Returned values!"], ["returning value"])[0].tolist() == [100, 100, 100, 100]
    assert rouge.score_pairs(["ads"], ["ad"])[0, 0] == 0


def test_line_breaks_do_not_move_rouge_l_but_sentences_move_rouge_lsum() -> None:
    target = "The cat sat. A dog ran."
    swapped = "A dog ran. The cat sat."
    joined, broken = rouge.score_pairs([swapped, swapped.replace(". ", ".\n")], [target, target])
    np.testing.assert_array_equal(joined, broken)
    assert joined[2] == pytest.approx(50)  # three of six words in order
    assert joined[3] == pytest.approx(100)  # every sentence is found whole


def test_a_line_break_alone_separates_sentences_for_rouge_lsum() -> None:
    assert rouge.score_pairs(["a dog ran\nthe cat sat"], ["the cat sat\na dog ran"])[0].tolist() == pytest.approx(
        [100, 80, 50, 100]
    )


def test_an_empty_prediction_scores_nothing_and_is_counted() -> None:
    scores = rouge.score(["", "the cat"], ["the cat", "the cat"])
    assert scores["empty"] == 1
    assert scores["rouge1"]["f1"] == 50
    assert scores["examples"] == 2
    assert scores["implementation"] == "rouge-score 0.1.2, stemming"


LINES = ["the cat sat on the mat", "Он ушёл домой. Она осталась.", "你好，世界。再见！", "ประเทศไทย"]


def test_texts_of_any_script_against_themselves() -> None:
    by_unicode = rouge.score(LINES, LINES, tokenizer="unicode")
    assert [by_unicode[measure]["f1"] for measure in rouge.MEASURES] == [100] * 4
    assert by_unicode["unread"] == {"predictions": 0, "references": 0}
    assert (by_unicode["tokenizer"], by_unicode["implementation"]) == ("unicode", "rouge-score 0.1.2, Unicode words")
    assert rouge.unread_note(by_unicode) is None
    by_default = rouge.score(LINES, ["a b c d e f", *LINES[1:]])
    assert by_default["rouge1"]["f1"] == 0
    assert by_default["unread"] == {"predictions": 3, "references": 3}
    assert "of 3 predictions and 3 references the tokenizer rouge keeps no word" in rouge.unread_note(by_default)


def test_words_of_any_script_are_compared() -> None:
    got = rouge.score_pairs(["Она ушла домой"], ["она осталась дома"], "unicode")[0]
    assert got == pytest.approx([f1(1, 3, 3), 0, f1(1, 3, 3), f1(1, 3, 3)])
    assert rouge.score_pairs(["世界你好"], ["你好世界"], "unicode")[0] == pytest.approx([100, f1(2, 3, 3), 50, 50])


def test_a_pair_that_would_take_hours_is_refused() -> None:
    with pytest.raises(SourceError, match=r"example 2: a prediction of 50,000 words and a reference of 40,000 are too"):
        rouge.score_pairs(["a", "a " * 50_000], ["a", "b " * 40_000])


def test_bootstrap_equals_a_plain_loop() -> None:
    values = np.random.default_rng(3).normal(size=(17, 2))
    rng, means = np.random.default_rng(5), []
    for _ in range(40):
        picked = [int(i) for i in rng.integers(0, 17, 17)]
        means.append([sum(values[i][k] for i in picked) / 17 for k in range(2)])
    for k in range(2):
        ordered = sorted(mean[k] for mean in means)
        for got, share in zip(rouge.bootstrap(values, 40, seed=5)[:, k], (0.025, 0.975), strict=True):
            place = share * 39
            below = int(place)
            assert got == pytest.approx(ordered[below] + (place - below) * (ordered[below + 1] - ordered[below]))


def test_bootstrap_is_a_function_of_its_seed() -> None:
    values = np.arange(50.0).reshape(-1, 1)
    np.testing.assert_array_equal(rouge.bootstrap(values, 100, seed=1), rouge.bootstrap(values, 100, seed=1))
    assert (rouge.bootstrap(values, 100, seed=1) != rouge.bootstrap(values, 100, seed=2)).any()


def test_bootstrap_interval_covers_the_true_mean_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    hits = 0
    for trial in range(300):
        low, high = rouge.bootstrap(rng.exponential(20.0, size=(120, 1)), 200, seed=trial)
        hits += low[0] <= 20.0 <= high[0]
    # 95% nominal; a skewed sample of 120 loses one or two points; ±3.5 standard errors of 300 trials.
    assert 0.89 <= hits / 300 <= 0.985


def test_bootstrap_width_follows_the_standard_error() -> None:
    values = np.random.default_rng(1).normal(10, 2, size=(4000, 1))
    low, high = rouge.bootstrap(values, 1000, seed=0)
    assert high[0] - low[0] == pytest.approx(2 * 1.96 * 2 / 4000**0.5, rel=0.12)


def test_a_paired_difference_equals_a_loop_that_scores_both_systems() -> None:
    rng = np.random.default_rng(4)
    ours, theirs = rng.uniform(0, 100, (2, 23, 4))
    found = rouge.paired(ours, theirs, samples=30, seed=6)
    drawn = np.random.default_rng(6)
    for column, measure in enumerate(rouge.MEASURES):
        assert found[measure]["difference"] == pytest.approx(
            ours[:, column].mean() - theirs[:, column].mean(), abs=6e-5
        )
    resampled = []
    for _ in range(30):
        picked = drawn.integers(0, 23, 23).tolist()
        resampled.append([sum(values[i][2] for i in picked) / 23 for values in (ours, theirs)])
    low, high = np.percentile([a - b for a, b in resampled], [2.5, 97.5])
    assert (found["rougeL"]["low"], found["rougeL"]["high"]) == pytest.approx((low, high), abs=6e-5)
    assert found["examples"] == 23
    with pytest.raises(ValueError, match="23 examples cannot be paired with 22"):
        rouge.paired(ours, theirs[:22])


def test_what_both_systems_share_does_not_widen_their_difference() -> None:
    """Of normal scores with a common part, the standard error of the difference is known."""
    rng = np.random.default_rng(5)
    shared = rng.normal(30, 20, (2000, 1))
    ours, theirs = (shared + mean + rng.normal(0, 1, (2000, 4)) for mean in (0.5, 0.0))
    found = rouge.paired(ours, theirs)["rouge1"]
    stderr = (2 / 2000) ** 0.5
    assert found["difference"] == pytest.approx(0.5, abs=4 * stderr)
    assert found["high"] - found["low"] == pytest.approx(2 * 1.96 * stderr, rel=0.12)
    constant = rouge.paired(ours + 2, ours)["rougeL"]
    assert constant == {"difference": 2.0, "low": 2.0, "high": 2.0}


@pytest.mark.parametrize(("system", "expected"), [("lead", (16.01, 1.58, 11.79)), ("ptgen", (29.34, 9.17, 23.04))])
def test_published_outputs_on_the_whole_xsum_test_set(samples: Path, system: str, expected: tuple[float, ...]) -> None:
    folder = samples / "xsum_outputs"
    scores = rouge.score_files(
        str(folder / f"{system}-test-output.txt.gz"), str(folder / "gold-test-sentences.txt.gz"), samples=100
    )
    assert scores["examples"] == 11_334
    assert tuple(round(scores[m]["f1"], 2) for m in ("rouge1", "rouge2", "rougeL")) == expected
    # The official Perl figures lie 0.02 to 0.36 above.
    official = (folder / f"{system}-test-output.rouge").read_text().splitlines()[0].split(": ")[1].split("/")
    for measure, index in (("rouge1", 0), ("rouge2", 1), ("rougeL", 3)):
        assert 0.01 <= float(official[index]) - scores[measure]["f1"] <= 0.37


@pytest.mark.parametrize("kind", ["txt", "txt.gz", "jsonl", "jsonl.gz", "parquet"])
def test_files_of_every_kind_score_alike(tmp_path: Path, kind: str) -> None:
    rng = random.Random(0)
    ours = [" ".join(rng.choices(["the", "cat", "\u2028sat", "déjà"], k=6)) for _ in range(9)]
    theirs = [" ".join(rng.choices(["the", "cat", "sat", "déjà"], k=6)) for _ in range(9)]
    paths = [
        write(tmp_path / f"{side}.{kind}", column, texts)
        for side, column, texts in (("p", "text", ours), ("r", "reference", theirs))
    ]
    assert rouge.score_files(*paths) == rouge.score(ours, theirs)


def test_a_second_system_is_scored_and_paired(tmp_path: Path) -> None:
    texts = {"p": ["the cat", "a dog ran", ""], "q": ["the cat sat", "a", "ox"], "r": ["the cat sat", "a dog", "ox"]}
    paths = {name: write(tmp_path / f"{name}.txt", "text", lines) for name, lines in texts.items()}
    found = rouge.score_files(paths["p"], paths["r"], against=paths["q"])
    against = found.pop("against")
    assert found == rouge.score(texts["p"], texts["r"])
    assert against["scores"] == rouge.score(texts["q"], texts["r"])
    pairs = (rouge.score_pairs(texts[name], texts["r"]) for name in "pq")
    assert against["paired"] == rouge.paired(*pairs)
    with pytest.raises(SourceError, match=r"short\.txt has 1 predictions but .*r\.txt has 3 references"):
        rouge.score_files(paths["p"], paths["r"], against=write(tmp_path / "short.txt", "text", ["a"]))


def test_our_own_predictions_file_serves_on_both_sides(tmp_path: Path) -> None:
    path = tmp_path / "predictions.parquet"
    pq.write_table(pa.table({"text": ["a cat"], "reference": ["a dog"]}), path)
    assert rouge.score_files(str(path), str(path))["rouge1"]["f1"] == 50


@pytest.mark.parametrize("name", ["p.txt", "p.jsonl", "p.JSON", "p.txt.GZ", "p.hypo"])
def test_a_byte_order_mark_and_line_breaks_of_windows_are_no_text(name: str, tmp_path: Path) -> None:
    texts = ["the cat", "", "sat"]
    lines = [json.dumps(text) if "js" in name.lower() else text for text in texts]
    data = "\ufeff".encode() + "".join(f"{line}\r\n" for line in lines).encode()
    (tmp_path / name).write_bytes(gzip.compress(data) if name.endswith("GZ") else data)
    assert rouge._texts(str(tmp_path / name), rouge.PREDICTION_COLUMNS) == texts


def test_different_numbers_of_lines_are_named(tmp_path: Path) -> None:
    ours, theirs = (write(tmp_path / name, "text", ["a"] * n) for name, n in (("p.txt", 3), ("r.txt", 4)))
    with pytest.raises(SourceError, match=r"p\.txt has 3 predictions .*r\.txt has 4 references"):
        rouge.score_files(ours, theirs)


def test_unusable_files_are_named(tmp_path: Path) -> None:
    good = write(tmp_path / "good.txt", "text", ["a"])
    cases = {
        "none.txt": (None, "does not exist"),
        "empty.txt": (b"", "is empty"),
        "bad.txt.gz": (b"plain", "cannot be read"),
        "bad.txt": (b"\xff\xfe\n", "cannot be read"),
        "bad.parquet": (b"PAR1", "cannot be read"),
        "bad.jsonl": (b'{"text": "a"}\n{"text": \n', "line 2 is not JSON"),
        "other.jsonl": (b'{"words": "a"}\n', r"line 1 has none of the columns .* it has words"),
        "number.jsonl": (b'{"text": 3}\n', "line 1: expected a text, found 3"),
        "long.jsonl": (b'{"text": [%s3]}\n' % (b"3, " * 9999), "line 1: expected a text, found .{80}$"),
        "empty.jsonl": (b'{"text": "a"}\n\n"b"\n', "line 2 is empty: each line holds one example"),
        "deep.jsonl": (b"[" * 100_000 + b"\n", "line 1 is not JSON"),
        "array.json": (b'[{"text": "a"}]', "line 1: expected an object or a text"),
        "table.csv": (b"text\na\n", "tables are not read"),
    }
    for name, (data, message) in cases.items():
        if data is not None:
            (tmp_path / name).write_bytes(data)
        with pytest.raises(SourceError, match=f"{name}.* ?{message}"):
            rouge.score_files(str(tmp_path / name), str(tmp_path / name) if data == b"" else good)


@pytest.mark.parametrize("name", ["p.txt.gz", "p.parquet"])
def test_damage_anywhere_is_an_error_that_names_the_file(name: str, tmp_path: Path) -> None:
    texts = [f"the cat number {i * i} sat" for i in range(200)]
    path, good = Path(write(tmp_path / name, "text", texts)), write(tmp_path / "good.txt", "text", texts)
    data = path.read_bytes()
    for length in range(len(data) // 10, len(data), len(data) // 10):
        zeros = bytes(min(20, len(data) - length))
        path.write_bytes(data[:length] + zeros + data[length + 20 :])
        with pytest.raises(SourceError, match=rf"{name} cannot be read"):
            rouge.score_files(str(path), good)


def test_a_null_in_parquet_is_named(tmp_path: Path) -> None:
    path = tmp_path / "nulls.parquet"
    pq.write_table(pa.table({"text": ["a", None]}), path)
    with pytest.raises(SourceError, match=r"nulls\.parquet row 1: column text"):
        rouge.score_files(str(path), str(path))


def write(path: Path, column: str, texts: list[str]) -> str:
    if path.suffix == ".parquet":
        pq.write_table(pa.table({column: texts}), path)
        return str(path)
    lines = [json.dumps({column: text}) for text in texts] if ".jsonl" in path.name else texts
    data = "".join(line + "\n" for line in lines).encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return str(path)
