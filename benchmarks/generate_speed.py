"""How fast samplers generate: rounds in which the LM head and the diffusion head take turns, in one process."""

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from generate_models import Pair
from generate_samplers import Line, lm_sampling

from bitlm.generation import BlockStep, Sampling
from bitlm.model import BitLMForCausalLM

ROUNDS = 7


@contextmanager
def never_ends(*models: BitLMForCausalLM) -> Iterator[None]:
    """No token ends a text, so that every text has all its tokens."""
    kept = [model.config.end_token_id for model in models]
    for model in models:
        model.config.end_token_id = -1
    yield
    for model, end_id in zip(models, kept, strict=True):
        model.config.end_token_id = end_id


class Contender:
    """Generates whole texts; remembers the steps of the last one, and of each the seconds after its first block."""

    def __init__(self, model: BitLMForCausalLM, sampling: Sampling, prompts: Sequence[list[int]]) -> None:
        self.model, self.sampling, self.prompts = model, sampling, prompts
        self.steps: list[BlockStep] = []
        self.after_first: list[float] = []

    @property
    def tokens_after_first(self) -> int:
        return len(self.prompts) * (self.sampling.max_new_tokens - self.model.config.block_size)

    def warm(self) -> None:
        self.model.generate(self.prompts, sampling=self.sampling, max_new_tokens=2 * self.model.config.block_size)

    def __call__(self) -> None:
        """Every step ends with ids on the host: nothing is left over."""
        stream = self.model.stream(self.prompts, sampling=self.sampling)
        self.steps = [next(stream)]
        began = time.perf_counter()
        self.steps.extend(stream)
        self.after_first.append(time.perf_counter() - began)


def race(pair: Pair, line: Line, prompts: Sequence[list[int]], seconds: float) -> dict[str, float]:
    """The LM head's line is raced against itself: that shows how far a ratio may be off.

    ``ratio`` is the median over rounds of the LM head's time divided by that of the line, whose own median gives
    ``tokens_per_second``; ``ratio_after_first`` is that of tokens per second without the first block, and so without
    the pass over the prompt. One round at least, and as many more as ``seconds`` allow, after one that is not counted.
    """
    peer = Contender(pair.lm, lm_sampling(line.temperature, line.sampling.max_new_tokens), prompts)
    ours = Contender(pair.of(line.head), line.sampling, prompts)
    with never_ends(pair.lm, pair.diffusion):
        for contender in (peer, ours):
            contender.warm()
        times = alternate([peer, ours], seconds)
    tokens = len(prompts) * line.sampling.max_new_tokens
    share = ours.tokens_after_first / peer.tokens_after_first
    after_first = zip(peer.after_first, ours.after_first, strict=True)
    return {
        "tokens_per_second": tokens / statistics.median(mine for _, mine in times),
        "ratio": statistics.median(theirs / mine for theirs, mine in times),
        "ratio_after_first": statistics.median(share * theirs / mine for theirs, mine in after_first),
        "rounds": len(times),
        "head_calls_per_token": sum(sum(step.calls) for step in ours.steps) / tokens,
        "backbone_passes_per_token": sum(len(step.rows) for step in ours.steps) / tokens,
    }


def alternate(
    contenders: Sequence[Callable[[], Any]], seconds: float, clock: Callable[[], float] = time.perf_counter
) -> list[list[float]]:
    """The times of each contender, round by round: as many rounds as fit into ``seconds``, 1 to ``ROUNDS``."""
    rounds: list[list[float]] = []
    began = clock()
    while not rounds or (len(rounds) < ROUNDS and clock() - began + sum(rounds[-1]) < seconds):
        times = []
        for contender in contenders:
            start = clock()
            contender()
            times.append(clock() - start)
        rounds.append(times)
    return rounds
