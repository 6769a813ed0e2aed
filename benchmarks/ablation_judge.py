"""Sampled blocks behind real text, judged by the LM head: how likely it finds them, and how many tokens are right."""

from collections.abc import Mapping
from typing import Any

import torch
from ablation_tokens import TokenBatches
from torch import Tensor

from bitlm.model import BitLMForCausalLM

# (K, stagger, ω): at 15 steps every path and guidance, at 4 steps the joint and a staggered one.
SETTINGS = [(15, s, w) for s in (0.0, 0.25, 0.5, 1.0) for w in (1.0, 2.0, 4.0, 9.0)]
SETTINGS += [(4, s, w) for s in (0.0, 0.5) for w in (1.0, 2.0, 4.0, 9.0)]


def judge(
    models: Mapping[str, BitLMForCausalLM], referee: BitLMForCausalLM, batches: TokenBatches, count: int
) -> list[dict[str, Any]]:
    """Figures of ``count`` blocks for each model and setting, and first those of the real blocks."""
    m = next(iter(models.values())).config.block_size
    ids = batches.validation(range(min(count, batches.validation_count))).input_ids
    N = ids.shape[1] // m
    prompts = [row[: m * (1 + i % (N - 1))].tolist() for i, row in enumerate(ids)]
    real = torch.stack([row[len(prompt) : len(prompt) + m] for prompt, row in zip(prompts, ids, strict=True)])
    found = [{"model": "real text", **_figures(referee, prompts, real, real)}]
    for name, model in models.items():
        for steps, stagger, scale in SETTINGS:
            output = model.generate(
                prompts, max_new_tokens=m, num_steps=steps, stagger=stagger, guidance_scale=scale, seed=0
            )
            # A block that ended is filled with end tokens, as training fills it.
            filled = [(row + [model.config.end_token_id] * m)[:m] for row in output.ids]
            figures = _figures(referee, prompts, torch.tensor(filled), real)
            found.append({"model": name, "num_steps": steps, "stagger": stagger, "guidance_scale": scale, **figures})
    return found


@torch.no_grad()
def _figures(referee: BitLMForCausalLM, prompts: list[list[int]], blocks: Tensor, real: Tensor) -> dict[str, Any]:
    """Mean nats per token of the blocks [n, m] under the LM head with the standard error over blocks, and per slot the
    share of tokens that are the real ones."""
    referee.eval()
    nats = []
    for prompt, block in zip(prompts, blocks, strict=True):
        whole = torch.tensor([prompt + block.tolist()])
        context = referee.compute_context(whole)[:, -len(block) :, 0]
        nats.append(referee.token_nll(context, whole[:, -len(block) :]).mean())
    each = torch.stack(nats).double()
    right = (blocks == real).double().mean(0).tolist()
    return {"nats": float(each.mean()), "stderr": float(each.std() / len(each) ** 0.5), "right": right}


def print_judgement(found: list[dict[str, Any]]) -> None:
    """One Markdown table for each model: nats per token, and in brackets how often the first token is the real one."""
    print("\nSampled blocks behind real text, judged by the LM head: nats per token [share of right first tokens].")
    print(f"Real text: {found[0]['nats']:.2f} ± {found[0]['stderr']:.2f}")
    scales = sorted({line["guidance_scale"] for line in found[1:]})
    for model in dict.fromkeys(line["model"] for line in found[1:]):
        print(f"\n| {model} | {' | '.join(f'ω = {scale:g}' for scale in scales)} |\n|{' --- |' * (len(scales) + 1)}")
        own = [line for line in found if line["model"] == model]
        for steps, stagger in dict.fromkeys((line["num_steps"], line["stagger"]) for line in own):
            cells = [
                f"{line['nats']:.2f} ± {line['stderr']:.2f} [{line['right'][0]:.0%}]"
                for line in own
                if (line["num_steps"], line["stagger"]) == (steps, stagger)
            ]
            print(f"| K = {steps}, stagger {stagger:g} | {' | '.join(cells)} |")
