"""Generation: the diffusion head's samplers against the LM head, speed and, of trained models, quality beside it.

    python benchmarks/generate.py                                             # shapes of tiny, random weights, CPU
    python benchmarks/generate.py --scale 0.6b --codebook --device cuda --dtype bfloat16 --compile --json generate.json
    bitlm run && python benchmarks/generate.py --models finetune/tiny-diffusion finetune/tiny-lm    # ./artifacts

Greedy samplers are compared with the greedy LM head, those that sample with the LM head at the same temperature. With
random weights both heads stand on the same backbone. Nothing ends early; the calls of trained models are those of their
texts as they end. Two ratios of tokens per second stand beside each speed: of whole texts, with the pass over the
prompt, and after their first block. ``--compile`` concerns the diffusion head alone.
"""

import argparse
import json
import os
import platform
from pathlib import Path
from typing import Any

import torch
from generate_models import Pair, Task, random_pair, trained_pair
from generate_quality import COLUMNS, Quality, cells
from generate_samplers import Line, default_options, lines, parse
from generate_speed import race
from transformers.utils import logging

from bitlm.devices import find_device
from bitlm.errors import BitLMError

SCALES = ("tiny", "tiny-article", "0.6b", "1.7b", "4b", "8b")
BATCHES = (1, 8, 64)
NEW_TOKENS, PROMPT_TOKENS = 32, 64  # of random weights


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, nargs="+", default=BATCHES)
    parser.add_argument("--seconds", type=float, default=6.0, help="for each sampler and batch, about")
    parser.add_argument("--sampler", action="append", metavar="KEY=VALUE,…", help="instead of the usual ones")
    parser.add_argument("--new-tokens", type=int, help=f"by default {NEW_TOKENS}, or as many as a summary may have")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--json", metavar="FILE")
    random = parser.add_argument_group("random weights")
    random.add_argument("--scale", choices=SCALES, default="tiny")
    random.add_argument("--codebook", action="store_true", help="with the head of tiny, of rank 256")
    random.add_argument("--set", action="append", default=[], dest="assignments", metavar="STAGE.KEY=VALUE")
    random.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    random.add_argument("--prompt-tokens", type=int, default=PROMPT_TOKENS)
    trained = parser.add_argument_group("trained models")
    trained.add_argument("--models", nargs=2, metavar="ID", help="finetune artifacts: diffusion head, LM head")
    trained.add_argument("--root", default="artifacts")
    trained.add_argument("--examples", type=int, help="the first so many of the test split; by default all")
    trained.add_argument("--blocks", type=int, default=2000, help="places sampled twice for BrierLM; 0: none")
    trained.add_argument("--text-batch", type=int, default=32, help="prompts at once where quality is measured")
    return parser


def main() -> None:
    parser = arguments()
    args = parser.parse_args()
    logging.disable_progress_bar()
    try:
        find_device(args.device)
        options = None if args.sampler is None else list(map(parse, args.sampler))
        pair, task = trained_pair(args) if args.models else (random_pair(args), None)
        chosen = default_options(pair.diffusion.config.block_size) if options is None else options
        new_tokens = args.new_tokens or (NEW_TOKENS if task is None else task.max_new_tokens)
        compared = lines(chosen, new_tokens, args.compile)
        for line in compared:
            line.sampling.check_model(pair.of(line.head).config)
    except BitLMError as error:
        parser.error(str(error))
    quality = None if task is None else Quality(pair, task, args.blocks, args.text_batch)
    about = machine(args, pair)
    print_head(args, about, quality)
    found = []
    for line in compared:
        found.append(measure(line, pair, task, quality, args))
        print_line(line, found[-1])
    if args.device.startswith("cuda"):
        about["peak_gib"] = torch.cuda.max_memory_allocated(args.device) / 2**30
    if args.json:
        Path(args.json).write_text(json.dumps({**about, "rows": found}, indent=1), encoding="utf8")


def measure(
    line: Line, pair: Pair, task: Task | None, quality: Quality | None, args: argparse.Namespace
) -> dict[str, Any]:
    """Figures of a line: ``speed`` by batch, and ``quality``, None without trained models."""
    speed = {batch: race(pair, line, _prompts(pair, task, batch, args), args.seconds) for batch in args.batch}
    return {
        "head": line.head,
        "sampler": line.name,
        "temperature": line.temperature,
        "speed": speed,
        "quality": None if quality is None else quality.measure(line),
    }


def _prompts(pair: Pair, task: Task | None, batch: int, args: argparse.Namespace) -> list[list[int]]:
    """Random ones, or the first of the task, which come again where there are fewer."""
    if task is not None:
        return [task.prompts[row % len(task.prompts)] for row in range(batch)]
    draw = torch.Generator().manual_seed(1)
    return torch.randint(pair.lm.config.vocab_size, (batch, args.prompt_tokens), generator=draw).tolist()


def machine(args: argparse.Namespace, pair: Pair) -> dict[str, Any]:
    name = f"{platform.processor() or platform.machine()} CPU"
    if args.device.startswith("cuda"):
        name = torch.cuda.get_device_name(args.device)
    counts = {
        "backbone": sum(p.numel() for p in pair.diffusion.model.parameters()),
        "diffusion_head": sum(p.numel() for p in pair.diffusion.head.parameters()),
        "lm_head_own": sum(p.numel() for p in pair.lm.head.parameters()),
    }
    return {
        "device": name,
        "threads": torch.get_num_threads(),
        "cpus": os.cpu_count(),
        "torch": torch.__version__,
        "options": {key: value for key, value in vars(args).items() if key != "json"},
        "parameters": counts,
        "model": pair.diffusion.config.to_dict(),
    }


def print_head(args: argparse.Namespace, about: dict[str, Any], quality: Quality | None) -> None:
    head = about["model"]["diffusion_head"]
    kind = f"{head['denoiser']} denoiser, {head['attention']} attention, {head['num_layers']} layers"
    subject = " and ".join(args.models) if args.models else f"{args.scale}, random weights, {args.dtype}"
    print(f"{subject}; {kind}; {about['device']}, {about['threads']} threads, compile = {args.compile}")
    if quality is not None:
        print(f"Judge: nats per token under the LM head; of the references {quality.references():.2f}")
    columns = ["decoding", "sampler", "backbone passes/token", "head calls/token"]
    columns += [f"tokens/s at batch {batch} (of LM head's: all, after first block)" for batch in args.batch]
    columns += COLUMNS if quality is not None else ()
    print(f"\n| {' | '.join(columns)} |\n|{'---|' * len(columns)}", flush=True)


def print_line(line: Line, row: dict[str, Any]) -> None:
    speed, quality = list(row["speed"].values()), row["quality"]
    cost = quality or speed[0]
    shown = [
        line.decoding,
        line.name,
        f"{cost['backbone_passes_per_token']:.2f}",
        f"{cost['head_calls_per_token']:.2f}",
    ]
    shown += [f"{one['tokens_per_second']:,.0f} ({one['ratio']:.2f}, {one['ratio_after_first']:.2f})" for one in speed]
    shown += cells(quality) if quality else ()
    print(f"| {' | '.join(shown)} |", flush=True)


if __name__ == "__main__":
    main()
