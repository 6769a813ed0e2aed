"""Sampled blocks behind real text, judged by the LM head: how likely it finds them, and how many tokens are right."""

from collections.abc import Mapping
from typing import Any

import torch
from ablation_tokens import TokenBatches
from torch import Tensor

from bitlm.generation import Sampling
from bitlm.model import BitLMForCausalLM

SAMPLERS: list[dict[str, Any]] = [
    *({"sampler": "commit", "slots_per_call": slots} for slots in (1, 2, 4)),
    {"sampler": "commit", "order": "surest"},
    {"sampler": "commit", "threshold": 0.5},
    {"sampler": "commit", "guidance_scale": 2.0},
    {"sampler": "commit", "temperature": 1.0},
    *({"stagger": s, "guidance_scale": w} for s in (0.0, 0.5, 1.0) for w in (1.0, 2.0, 4.0, 9.0)),
    *({"num_steps": 6, "solver": "dpmpp_2m", "time_grid": "shifted", "guidance_scale": w} for w in (1.0, 9.0)),
]


def judge(
    models: Mapping[str, BitLMForCausalLM], referee: BitLMForCausalLM, batches: TokenBatches, count: int
) -> list[dict[str, Any]]:
    """Figures of ``count`` blocks for each model and sampler, and first those of the real blocks."""
    m = next(iter(models.values())).config.block_size
    ids = batches.validation(range(min(count, batches.validation_count))).input_ids
    N = ids.shape[1] // m
    prompts = [row[: m * (1 + i % (N - 1))].tolist() for i, row in enumerate(ids)]
    real = torch.stack([row[len(prompt) : len(prompt) + m] for prompt, row in zip(prompts, ids, strict=True)])
    found = [{"model": "real text", **_figures(referee, prompts, real, real)}]
    for name, model in models.items():
        for options in SAMPLERS:
            sampling = Sampling(max_new_tokens=m, **options)
            output = model.generate(prompts, sampling=sampling)
            # A block that ended is filled with end tokens, as training fills it.
            filled = [(row + [model.config.end_token_id] * m)[:m] for row in output.ids]
            figures = _figures(referee, prompts, torch.tensor(filled), real)
            calls = sum(output.calls) / len(prompts)
            found.append({"model": name, "sampler": sampling.name, "calls": calls, **figures})
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
    """Markdown; the share of right tokens is that of first tokens."""
    print("\nSampled blocks behind real text: nats per token under the LM head.")
    print("\n| model | sampler | head calls | nats per token | right first tokens |\n| --- | --- | --- | --- | --- |")
    for line in found:
        cells = [line["model"], line.get("sampler", ""), f"{line['calls']:.2f}" if "calls" in line else ""]
        cells += [f"{line['nats']:.2f} ± {line['stderr']:.2f}", f"{line['right'][0]:.0%}"]
        print(f"| {' | '.join(cells)} |")
