"""How fast samplers generate: rounds in which the LM head and the diffusion head take turns, in one process."""

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from generate_models import Pair
from generate_samplers import Line, lm_sampling

from bitlm.generation import GenerateOutput
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


def race(pair: Pair, line: Line, prompts: Sequence[list[int]], seconds: float) -> dict[str, float]:
    """The LM head's line is raced against itself: that shows how far a ratio may be off.

    ``ratio`` is the median over rounds of the LM head's time divided by that of the line, whose own median gives
    ``tokens_per_second``. One round at least, and as many more as ``seconds`` allow, after one that is not counted.
    """
    model = pair.of(line.head)
    of_lm = lm_sampling(line.temperature, line.sampling.max_new_tokens)
    outputs: list[GenerateOutput] = []

    def peer() -> None:
        pair.lm.generate(prompts, sampling=of_lm)

    def ours() -> None:
        outputs[:] = [
            model.generate(prompts, sampling=line.sampling)
        ]  # ends with ids on the host: nothing is left over

    with never_ends(pair.lm, pair.diffusion):
        for warmed, sampling in ((pair.lm, of_lm), (model, line.sampling)):
            warmed.generate(prompts, sampling=sampling, max_new_tokens=2 * model.config.block_size)
        times = alternate([peer, ours], seconds)
    tokens = len(prompts) * line.sampling.max_new_tokens
    return {
        "tokens_per_second": tokens / statistics.median(mine for _, mine in times),
        "ratio": statistics.median(theirs / mine for theirs, mine in times),
        "rounds": len(times),
        "head_calls_per_token": sum(outputs[0].calls) / tokens,
        "backbone_passes_per_token": sum(outputs[0].blocks) / tokens,
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
