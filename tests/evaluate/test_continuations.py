from collections.abc import Sequence

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from bitlm.batch import Batch
from bitlm.config import EvaluateConfig
from bitlm.evaluate.continuations import (
    Positions,
    example_ids,
    in_summaries,
    in_text,
    random_sampler,
    random_sampling,
    samples,
    to_table,
    until_end,
)
from bitlm.generation import Sampling

END = 9
LENGTH, COUNT = 24, 7  # tokens of a sequence, sequences


class Text:
    """Sequences whose tokens tell where they stand, with an end token at a few places."""

    validation_count = COUNT

    def __init__(self) -> None:
        self.rows = [[100 * row + place for place in range(LENGTH)] for row in range(COUNT)]
        self.rows[2][6] = self.rows[2][13] = self.rows[5][4] = END
        self.asked: list[int] = []

    def validation(self, indices: Sequence[int]) -> Batch:
        self.asked += indices
        return Batch(torch.tensor([self.rows[i] for i in indices]), None, None, list(indices), [0] * len(indices))


def by_hand(rows: list[list[int]], end: int) -> list[int]:
    """What follows, up to the end token, which then repeats."""
    found = []
    for token in rows[:4]:
        found.append(end if end in found else token)
    return found + [end] * (4 - len(found))


def as_tuples(positions: Positions) -> list[tuple]:
    return [
        (int(sequence), tuple(prompt), tuple(truth))
        for sequence, prompt, truth in zip(
            positions.sequences, positions.prompts, positions.truth.tolist(), strict=True
        )
    ]


def test_every_place_of_the_text_can_be_taken_and_none_twice() -> None:
    text = Text()
    everywhere = [
        (number, tuple(row[:start]), tuple(by_hand(row[start:], END)))
        for number, row in enumerate(text.rows)
        for start in range(4, LENGTH - 3, 4)
    ]
    assert len(everywhere) == 35
    assert as_tuples(in_text(text, LENGTH, END, 1000, seed=0)) == everywhere
    some = as_tuples(in_text(text, LENGTH, END, 12, seed=0))
    assert len(set(some)) == 12
    assert set(some) < set(everywhere)
    assert (
        some == as_tuples(in_text(text, LENGTH, END, 12, seed=0)) != as_tuples(in_text(text, LENGTH, END, 12, seed=1))
    )


def test_the_places_of_a_part_are_all_over_sequences_and_lengths() -> None:
    """Of 70 draws of 8 places each of the 35 is taken 16 times on average, with a spread of 3.5."""
    taken = dict.fromkeys(as_tuples(in_text(Text(), LENGTH, END, 1000, seed=0)), 0)
    for seed in range(70):
        for place in as_tuples(in_text(Text(), LENGTH, END, 8, seed=seed)):
            taken[place] += 1
    assert min(taken.values()) > 2
    assert max(taken.values()) < 33


def test_only_the_sequences_that_are_needed_are_read() -> None:
    text = Text()
    positions = in_text(text, LENGTH, END, 3, seed=0)
    assert text.asked == sorted(set(positions.sequences.tolist()))


def test_blocks_of_summaries_follow_the_prompt_and_what_was_written_before() -> None:
    prompts = [[1, 2, 3], [4], [5, 6]]
    summaries = [[20, 21, 22, 23, 24, END], [30, END], [40, 41, 42, 43, 44, 45, 46, END]]
    assert as_tuples(in_summaries(prompts, summaries, END, 99, seed=0)) == [
        (0, (1, 2, 3), (20, 21, 22, 23)),
        (0, (1, 2, 3, 20, 21, 22, 23), (24, END, END, END)),
        (1, (4,), (30, END, END, END)),
        (2, (5, 6), (40, 41, 42, 43)),
        (2, (5, 6, 40, 41, 42, 43), (44, 45, 46, END)),
    ]
    assert len(in_summaries(prompts, summaries, END, 2, seed=0)) == 2


@given(st.lists(st.integers(0, END), max_size=7))
def test_what_follows_an_end_token_counts_as_end_tokens(ids: list[int]) -> None:
    assert until_end(ids, END) == by_hand(ids, END)


def test_the_two_samples_of_a_position_have_noise_of_their_own() -> None:
    assert example_ids([3, 0, 5]) == [6, 7, 0, 1, 10, 11]
    ids = example_ids(range(1000))
    assert len(set(ids)) == len(ids)


def test_greedy_settings_sample_at_temperature_one() -> None:
    settings = EvaluateConfig(seed=5, num_steps=7, bootstrap_samples=3)
    assert random_sampling(settings, "lm") == Sampling(max_new_tokens=4, seed=5, num_steps=7, temperature=1.0)
    assert random_sampling(settings, "diffusion") == Sampling(max_new_tokens=4, seed=5, num_steps=7)
    commit = EvaluateConfig(sampler="commit")
    assert random_sampling(commit, "diffusion") == Sampling(max_new_tokens=4, sampler="commit", temperature=1.0)
    tempered = commit.model_copy(update={"temperature": 0.5})
    assert random_sampling(tempered, "diffusion").temperature == 0.5
    assert random_sampler(settings, "lm") == "temperature 1"
    assert random_sampler(settings, "diffusion") == "descent K=7 ω=9"
    assert random_sampler(commit, "diffusion") == "commit left, 1 slot per call, temperature 1"


def test_lengths_are_those_of_the_bootstrap() -> None:
    positions = in_text(Text(), LENGTH, END, 10, seed=3)
    assert positions.truth.shape == (10, 4)
    assert positions.truth.dtype == positions.sequences.dtype == np.int64
    assert len(positions) == len(positions.sequences) == 10


def test_samples_and_truth_are_kept_as_they_are() -> None:
    positions = in_text(Text(), LENGTH, END, 10, seed=3)
    first, second = (np.arange(40).reshape(10, 4) + shift for shift in (0, 500))
    table = to_table(positions, first.tolist(), second.tolist())
    assert table["prompt_tokens"].to_pylist() == [len(prompt) for prompt in positions.prompts]
    assert table["sequence"].to_pylist() == positions.sequences.tolist()
    for found, expected in zip(samples(table), (first, second, positions.truth), strict=True):
        np.testing.assert_array_equal(found, expected)
