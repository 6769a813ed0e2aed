"""Generation as methods of a model."""

from collections.abc import Iterator, Sequence

from bitlm.generation import loop
from bitlm.generation.loop import BlockStep, GenerateOutput
from bitlm.generation.options import Sampling, options_of


class GenerationMixin:
    """For a class that satisfies ``GenerativeModel``. Options are the fields of ``Sampling``, given one by one or as
    ``sampling``, whose fields single options replace."""

    def generate(
        self,
        prompts: Sequence[Sequence[int]] | None = None,
        *,
        example_ids: Sequence[int] | None = None,
        sampling: Sampling | None = None,
        **options,
    ) -> GenerateOutput:
        """Continue each prompt until its end token or ``max_new_tokens``. Arguments and errors as in ``stream``."""
        return loop.generate(self, prompts, example_ids, options_of(sampling, options))

    def stream(
        self,
        prompts: Sequence[Sequence[int]] | None = None,
        *,
        example_ids: Sequence[int] | None = None,
        sampling: Sampling | None = None,
        **options,
    ) -> Iterator[BlockStep]:
        """Continue all prompts in step and yield each block as soon as it is realized. Rows that ended leave the batch.

        ``prompts``: for each, at least one token id; lengths may differ, nothing is padded. ``example_ids`` (by
        default the prompts' numbers) key the randomness of each. ``max_new_tokens`` is needed; by default a diffusion
        head descends in K = 15 steps with ω = 9.

        Raises ConfigError, before anything runs, for an option that there is not or out of its range, an empty prompt,
        ids outside the vocabulary, a prompt for which the model has too few positions, a wrong number of example ids,
        or options that the model does not have, such as a trace of the LM head.
        """
        return loop.stream(self, prompts, example_ids, options_of(sampling, options))
