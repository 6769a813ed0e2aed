"""How good the texts of samplers are: ROUGE against the references, nats under the LM head, and BrierLM."""

from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
from generate_models import Pair, Task
from generate_samplers import Line, lm_sampling

from bitlm.evaluate import brier, rouge
from bitlm.evaluate.continuations import LENGTH, example_ids, in_summaries, until_end
from bitlm.evaluate.judge import judge
from bitlm.evaluate.measures import MAIN_MEASURES, MEASURES
from bitlm.evaluate.predictions import batches
from bitlm.generation import GenerateOutput, Sampling

SEED = 0  # of the places at which blocks are sampled, and of resamples
COMPARED = ("rouge1", "rougeL")
COLUMNS = ("ROUGE-1/2/L", *(f"{MEASURES[one]} - LM head's" for one in COMPARED), "judge", "BrierLM", "of LM head's")


class Quality:
    """Measures lines on the examples of a task.

    blocks: places in the references where two samples of 4 tokens are taken, for BrierLM; 0: no BrierLM.
    batch: prompts at once.
    """

    def __init__(self, pair: Pair, task: Task, blocks: int, batch: int) -> None:
        self._pair, self._task, self._batch = pair, task, batch
        self._end_id = task.tokenizer.info.end_id
        self._positions = in_summaries(task.prompts, task.summaries, self._end_id, blocks, SEED)
        # Many lines are compared with the same texts of the LM head.
        self._texts, self._blocks = cache(self._write_texts), cache(self._write_blocks)

    def references(self) -> float:
        """Nats per token of the references under the LM head."""
        return self._nats([ids[:-1] for ids in self._task.summaries], [True] * len(self._task.summaries))

    def measure(self, line: Line) -> dict[str, Any]:
        """``head_calls_per_token`` and ``backbone_passes_per_token`` of the texts as they end; ``rouge``, F1 ×100 by
        measure; ``nats``; ``rouge_difference``, line minus LM head; of a random sampler ``brier_lm`` with its interval
        and ``brier_ratio``, of that of the LM head at the same temperature (1 where that is greedy)."""
        length = self._task.max_new_tokens
        output = self._texts(line.head, replace(line.sampling, max_new_tokens=length))
        of_lm = self._texts("lm", lm_sampling(line.temperature, length))
        values = self._scores(output)
        tokens = sum(map(len, output.ids)) + sum(output.ended)
        found = {
            "head_calls_per_token": sum(output.calls) / tokens,
            "backbone_passes_per_token": sum(output.blocks) / tokens,
            "rouge": dict(zip(MEASURES, values.mean(axis=0).tolist(), strict=True)),
            "rouge_difference": rouge.paired(values, self._scores(of_lm), seed=SEED),
            "nats": self._nats(output.ids, output.ended),
        }
        greedy = line.temperature == 0 and (line.head == "lm" or line.sampling.sampler == "commit")
        return found if greedy or not len(self._positions) else found | self._brier(line)

    def _brier(self, line: Line) -> dict[str, Any]:
        sequences, truth = self._positions.sequences, self._positions.truth
        ours = self._blocks(line.head, replace(line.sampling, max_new_tokens=LENGTH))
        theirs = self._blocks("lm", lm_sampling(line.temperature or 1.0, LENGTH))
        ratio = brier.ratio(brier.terms(*ours, truth), brier.terms(*theirs, truth), sequences, seed=SEED)
        return {"brier_lm": brier.score(*ours, truth, sequences, seed=SEED)["brier_lm"], "brier_ratio": ratio}

    def _write_texts(self, head: str, sampling: Sampling) -> GenerateOutput:
        return self._generate(head, self._task.prompts, sampling, range(len(self._task.prompts)))

    def _write_blocks(self, head: str, sampling: Sampling) -> tuple[np.ndarray, np.ndarray]:
        """Two samples behind each position, ids [positions, 4]."""
        twice = [prompt for prompt in self._positions.prompts for _ in range(2)]
        keys = example_ids(range(len(self._positions)))
        output = self._generate(head, twice, sampling, keys)
        ids = np.array([until_end(block, self._end_id) for block in output.ids])
        return ids[::2], ids[1::2]

    def _generate(
        self, head: str, prompts: Sequence[list[int]], sampling: Sampling, keys: Sequence[int]
    ) -> GenerateOutput:
        """In batches of similar length; all lists in the order of the prompts."""
        model = self._pair.of(head)
        n = len(prompts)
        whole = GenerateOutput([[] for _ in prompts], [False] * n, [0] * n, [0] * n, [0] * n)
        for rows in batches([len(prompt) for prompt in prompts], set(), self._batch):
            part = model.generate([prompts[i] for i in rows], example_ids=[keys[i] for i in rows], sampling=sampling)
            for name in ("ids", "ended", "calls", "saved", "blocks"):
                for row, value in zip(rows, getattr(part, name), strict=True):
                    getattr(whole, name)[row] = value
        return whole

    def _scores(self, output: GenerateOutput) -> np.ndarray:
        """F1 ×100 of every text, [texts, measures]."""
        texts = [self._task.tokenizer.decode(ids).strip() for ids in output.ids]
        return rouge.score_pairs(texts, self._task.references)

    def _nats(self, ids: Sequence[Sequence[int]], ended: Sequence[bool]) -> float:
        return judge(self._pair.lm, self._task.prompts, ids, ended, self._batch).nats_per_token


def cells(found: dict[str, Any]) -> list[str]:
    """Of a table with the columns of ``COLUMNS``."""
    return [
        "/".join(f"{found['rouge'][measure]:.2f}" for measure in MAIN_MEASURES),
        *(_difference(found["rouge_difference"][measure]) for measure in COMPARED),
        f"{found['nats']:.2f}",
        _interval(found["brier_lm"]) if "brier_lm" in found else "–",
        _interval(found["brier_ratio"]) if found.get("brier_ratio", {}).get("low") is not None else "–",
    ]


def _difference(figures: dict[str, float]) -> str:
    return f"{figures['difference']:+.2f} [{figures['low']:+.2f}, {figures['high']:+.2f}]"


def _interval(figures: dict[str, float]) -> str:
    return f"{figures['value']:.2f} [{figures['low']:.2f}, {figures['high']:.2f}]"
