"""What is recorded: computed anew by ``compute``, compared with ``recorded.json`` by ``difference``.

A change of the code that is not meant to change results must leave all of it as it is. Draws and fingerprints are
compared exactly, training figures within 1e-4, of a figure above 1 within 1e-4 of it (another CPU rounds otherwise),
tokens only as far as their decisions are clear.
"""

import json
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "train"))

from toy_training import metrics, run, run_ranks

from bitlm.config import PRESETS, DiffusionConfig, configure
from bitlm.data.reading.order import Order
from bitlm.data.sources import docstrings, state
from bitlm.data.sources.files import SourceFile
from bitlm.diffusion.bound import NoisePath, path_noise
from bitlm.diffusion.noise import BlockShape, NoiseKeys, block_noise, sample_noise, token_uniform
from bitlm.model import BitLMForCausalLM
from bitlm.model.prefix import PrefixPass
from bitlm.steps import steps
from bitlm.storage import hub
from bitlm.storage.hub import HubFile

RECORDED = Path(__file__).parent / "recorded.json"
TOLERANCE = 1e-4
MARGIN = 0.02  # |value| of the least certain bit, or the lead of the likeliest token's log p
TRAININGS: dict[str, dict[str, Any]] = {
    "lm": {"head": "lm"},
    "lm-masked": {"head": "lm", "masked": True},
    "diffusion": {"head": "diffusion"},
    "codebook": {"head": "codebook"},
    "codebook-masked": {"head": "codebook", "masked": True},
    "chain": {"head": "chain"},
}
OPTIONS = {"steps": 30, "validate_every": 10, "execution": {"checkpoint_every": 100}}
FIGURES = ("loss", "grad_norm", "validation_nats_per_token", "validation_nats_per_slot")
PROMPTS = ([20, 22, 24], [5, 8, 11, 14, 17], [40], [1, 2, 3, 4])
SAMPLERS: dict[str, dict[str, Any]] = {
    "lm": {},
    "diffusion": {"num_steps": 8, "guidance_scale": 3.0},
    "codebook": {"num_steps": 6, "guidance_scale": 2.0, "stagger": 0.5},
    "chain": {"sampler": "commit"},
}
HUB_FILES = [
    SourceFile(url="hf://x", path="train/0.parquet", split="train", format="parquet", bytes=5, etag="sha256:0"),
    SourceFile(url="hf://x", path="test/0.parquet", split="test", format="parquet", bytes=7, etag="sha256:1"),
]


def compute() -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        return {
            "training": _trainings(Path(folder)),
            "generation": {name: _generated(Path(folder, "1", name), name) for name in SAMPLERS},
            "draws": _draws(),
            "fingerprints": {preset: _fingerprints(preset) for preset in PRESETS},
        }


def difference(recorded: Any, found: Any, key: str = "") -> Iterator[str]:
    """A line for everything that is not as it was recorded."""
    if isinstance(recorded, dict) and isinstance(found, dict):
        for name in sorted({*recorded, *found}):
            yield from difference(recorded.get(name), found.get(name), f"{key}.{name}".lstrip("."))
    elif key.startswith("training.") and _numbers(recorded) and _numbers(found) and len(recorded) == len(found):
        worst = max((abs(a - b) / max(1.0, abs(a)) for a, b in zip(recorded, found, strict=True)), default=0.0)
        if worst > TOLERANCE:
            yield f"{key}: differs by up to {worst:.2g}"
    elif key.startswith("generation.") and recorded and found and len(recorded) == len(found):
        for prompt, (then, now) in enumerate(zip(recorded, found, strict=True)):
            clear = next((i for i, margin in enumerate(then["margins"]) if margin < MARGIN), len(then["margins"]))
            if then["blocks"][:clear] != now["blocks"][:clear]:
                yield f"{key}: prompt {prompt}: {now['blocks'][:clear]} instead of {then['blocks'][:clear]}"
    elif recorded != found:
        yield f"{key}: {_short(found)} instead of {_short(recorded)}"


def load() -> dict[str, Any]:
    return json.loads(RECORDED.read_text())


def _trainings(folder: Path) -> dict[str, Any]:
    """Losses, gradient norms and validation figures of 30 steps, by one process and by two."""
    for name, options in TRAININGS.items():
        run(folder / "1" / name, **options, **OPTIONS)
    run_ranks(2, [(folder / "2" / name, options | OPTIONS) for name, options in TRAININGS.items()])
    return {f"{world} x {name}": _figures(folder / world / name) for world in ("1", "2") for name in TRAININGS}


def _figures(folder: Path) -> dict[str, list[float]]:
    found: dict[str, list[float]] = {}
    for line in metrics(folder):
        for name in FIGURES:
            value = line.get(name, [])
            found.setdefault(name, []).extend(value if isinstance(value, list) else [value])
    return found


def _generated(folder: Path, name: str) -> list[dict[str, Any]]:
    """Blocks of tokens for each prompt, with the margin of the least certain decision in each block."""
    model = BitLMForCausalLM.load(folder / "out" / "model").eval()
    m = model.config.block_size
    found = []
    for number, prompt in enumerate(PROMPTS):
        by_token = name == "lm" or "sampler" in SAMPLERS[name]
        trace = {} if by_token else {"trace": True}
        output = model.generate([prompt], example_ids=[number], max_new_tokens=12, seed=5, **SAMPLERS[name], **trace)
        ids = output.ids[0]
        blocks = [ids[start : start + m] for start in range(0, len(ids), m)]
        if by_token:
            leads = _leads(model, prompt, ids) if name == "lm" else _leads_in_blocks(model, prompt, ids)
            margins = [min(leads[start : start + m]) for start in range(0, len(ids), m)]
        else:
            margins = [round(float(states[-1].abs().min()), 4) for states in output.states[0]]
        found.append({"blocks": blocks, "margins": margins[: len(blocks)]})
    return found


@torch.no_grad()
def _leads(model: BitLMForCausalLM, prompt: list[int], ids: list[int]) -> list[float]:
    context = model.compute_context(torch.tensor([prompt + ids]))[0, len(prompt) :, 0]  # [new tokens, D]
    best = model.head(context, model.model.embed_tokens.weight).topk(2, dim=-1).values
    return [round(float(a - b), 4) for a, b in best]


@torch.no_grad()
def _leads_in_blocks(model: BitLMForCausalLM, prompt: list[int], ids: list[int]) -> list[float]:
    """Behind the clean slots before each one; what fills the last block has no part in that."""
    m, V = model.config.block_size, model.config.vocab_size
    padding, fill = -len(prompt) % m, -len(ids) % m
    row = torch.tensor([[0] * padding + prompt + ids + [0] * fill])
    mask = (torch.arange(row.shape[1]) >= padding).long()[None]
    blocks = (len(ids) + fill) // m
    block = model.head.prepare(model.compute_context(row, mask)[0, -blocks:])
    clean = row.view(-1, m)[-blocks:, : m - 1]
    posterior = model.head.behind_prefix(clean, PrefixPass.every(m, 1, row.device), model.head_constants(), block)
    log_p = torch.stack([posterior.log_prob(torch.full((blocks, m), y)) for y in range(V)], dim=-1)
    best = log_p.topk(2, dim=-1).values.flatten(0, 1)[: len(ids)]
    return [round(float(a - b), 4) for a, b in best]


def _draws() -> dict[str, list]:
    """A few numbers of every random stream: a training that goes on with another version must not see others."""
    found: dict[str, list] = {}
    for name, diffusion in {
        "train": DiffusionConfig(noise_draws=2, condition_dropout=0.5),
        "train, uniform, slots": DiffusionConfig(t_distribution="uniform", slot_noise=0.5),
        "train, prefixes, offsets": DiffusionConfig(
            prefix_share=0.3, uniform_share=0.3, noise_share=0.5, chain_slots=1, block_offsets=2
        ),
    }.items():
        noise = block_noise(NoiseKeys(7, [5, 700_000_000_000], [2, 0]), BlockShape(3, 2, 2), diffusion)
        found[name] = [noise.eps.flatten().tolist(), noise.t.flatten().tolist(), noise.drop.flatten().tolist()]
        if diffusion.chain_slots:
            found[name] += [noise.learn.flatten().tolist(), noise.offsets.tolist()]
    noise, weights = path_noise(7, [5], BlockShape(2, 2, 2), NoisePath(3, 0.5))
    found["bound"] = [noise.eps.flatten().tolist(), noise.t.flatten().tolist(), weights.flatten().tolist()]
    found["sample"] = sample_noise(7, 5, 2, 2, 3).flatten().tolist()
    found["token"] = [token_uniform(7, 5, position) for position in range(3)]
    indices, epochs = Order([40, 7, 0, 23, 30], seed=7, window_shards=2)(range(90, 110))
    found["order"] = [indices.tolist(), epochs.tolist()]
    return found


def _fingerprints(preset: str) -> dict[str, str]:
    """Of every step, with fixed packages and files of the Hub as the state of the sources."""
    packages = {"kind": "docstrings", "packages": ["python==3.11.0"]}
    tokenizer = HubFile("tokenizer.json", 5, "sha256:2")
    with (
        mock.patch.object(docstrings, "state", return_value=packages),
        mock.patch.object(state, "dataset_files", return_value=HUB_FILES),
        mock.patch.object(hub, "stat_file", return_value=tokenizer),
    ):
        return {step.key: step.fingerprint for step in steps(configure(preset))}


def _numbers(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, int | float) for item in value)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "…"
