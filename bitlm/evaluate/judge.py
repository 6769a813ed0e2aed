"""How likely a language model finds texts that another model wrote: nats per token, teacher-forced.

It stands beside ROUGE, which short and general texts satisfy. Low figures alone prove little either: an LM head finds
its own greedy texts likelier than any reference.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from bitlm.errors import ConfigError
from bitlm.model import BitLMForCausalLM


@dataclass(frozen=True)
class Judgement:
    """By text: ``nats`` float64 [texts], summed over its tokens, and the number of these ``tokens`` int64 [texts]."""

    nats: np.ndarray
    tokens: np.ndarray

    @property
    def nats_per_token(self) -> float:
        return float(self.nats.sum() / self.tokens.sum())


@torch.inference_mode()
def judge(
    model: BitLMForCausalLM,
    prompts: Sequence[Sequence[int]],
    continuations: Sequence[Sequence[int]],
    ended: Sequence[bool],
    batch_size: int = 32,
) -> Judgement:
    """-log p of each continuation behind its prompt, under a model with the LM head in evaluation mode.

    ``continuations`` and ``ended`` are ``ids`` and ``ended`` of ``GenerateOutput``: the end token is left out of the
    first and counts where the second is True. Texts are taken in batches of similar length.
    Raises ConfigError for a diffusion head, lists of different lengths, an empty prompt, and where there is no token.
    """
    if model.config.head != "lm":
        raise ConfigError("a text is judged by a model with the LM head; the diffusion head tells no exact likelihood")
    if not len(prompts) == len(continuations) == len(ended):
        raise ConfigError(
            f"{len(prompts)} prompts, {len(continuations)} continuations and {len(ended)} ends: one of each is needed"
        )
    if not all(map(len, prompts)):
        raise ConfigError("a prompt is empty: give at least one token")
    texts = [
        [*ids, model.config.end_token_id] if end else list(ids) for ids, end in zip(continuations, ended, strict=True)
    ]
    tokens = np.array([len(ids) for ids in texts], dtype=np.int64)
    if not tokens.sum():
        raise ConfigError("the texts hold no token: there is nothing to judge")
    rows = [[*prompt, *ids] for prompt, ids in zip(prompts, texts, strict=True)]
    order = sorted(range(len(rows)), key=lambda row: len(rows[row]))
    nats = np.zeros(len(rows))
    for start in range(0, len(order), batch_size):
        chosen = order[start : start + batch_size]
        nats[chosen] = _nats(model, [rows[row] for row in chosen], [len(texts[row]) for row in chosen])
    return Judgement(nats, tokens)


def _nats(model: BitLMForCausalLM, rows: Sequence[Sequence[int]], lengths: Sequence[int]) -> np.ndarray:
    """-log p of the last ``lengths`` tokens of each row, summed; float64 [rows]."""
    b, L = len(rows), max(map(len, rows))
    ids_bL = torch.zeros(b, L, dtype=torch.int64)
    visible_bL = torch.zeros(b, L, dtype=torch.int64)
    for row, ids in enumerate(rows):
        ids_bL[row, L - len(ids) :] = torch.tensor(ids)
        visible_bL[row, L - len(ids) :] = 1
    judged_bL = torch.arange(L) >= L - torch.tensor(lengths)[:, None]
    ids_bL, judged_bL = ids_bL.to(model.device), judged_bL.to(model.device)
    context_bLD: Tensor = model.compute_context(ids_bL, visible_bL.to(model.device))[:, :, 0]
    # Only what is judged is scored over the whole vocabulary.
    nats_bL = torch.zeros(b, L, dtype=torch.float64, device=model.device)
    nats_bL[judged_bL] = model.token_nll(context_bLD[judged_bL], ids_bL[judged_bL]).double()
    return nats_bL.sum(1).cpu().numpy()
