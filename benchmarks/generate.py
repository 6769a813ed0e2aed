"""Speed of generation: the diffusion head against the LM head of the same backbone, with random weights, in one run.

    python benchmarks/generate.py                                                      # tiny, CPU
    python benchmarks/generate.py --scale 0.6b --device cuda --dtype bfloat16 --compile --json generate.json

Both heads stand on the very same backbone and use the same loop and key/value cache: the LM head takes one backbone
pass per token, the diffusion head one per block of m tokens and K head calls (2K with guidance). Nothing ends early.
Times include the pass over the prompt. ``--compile`` concerns the diffusion head alone.
"""

import argparse
import json
import os
import platform
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn

from bitlm.codes import min_bits
from bitlm.config import configure
from bitlm.devices import find_device
from bitlm.errors import ConfigError
from bitlm.generation import Sampling
from bitlm.model import BitLMConfig, BitLMForCausalLM
from bitlm.model.config import QWEN3_IDS, Vocabulary

SCALES = ("tiny", "tiny-article", "0.6b", "1.7b", "4b", "8b")
BATCHES, STEPS, OMEGAS = (1, 8, 64), (4, 8, 15), (1.0, 9.0)


def models(args: argparse.Namespace) -> tuple[BitLMForCausalLM, BitLMForCausalLM]:
    """The diffusion head's model, and the LM head's on the same backbone modules."""
    config = configure(args.scale, args.assignments)
    vocab_size = config.tokenizer.vocab_size if args.scale.startswith("tiny") else QWEN3_IDS
    vocabulary = Vocabulary(vocab_size, min_bits(vocab_size), end_id=0, pad_id=0)
    torch.set_default_dtype(getattr(torch, args.dtype))
    torch.manual_seed(0)
    with torch.device(args.device):
        diffusion = BitLMForCausalLM(BitLMConfig.from_sections(config.model, "diffusion", vocabulary))
    with torch.device("meta"):
        lm = BitLMForCausalLM(BitLMConfig.from_sections(config.model, "lm", vocabulary))
    lm.model = diffusion.model
    lm.start_block = nn.Parameter(diffusion.start_block.detach()[:1].clone())
    lm.head.to_empty(device=args.device)
    with torch.no_grad():
        # A fresh diffusion head answers 0 whatever it sees, and memory that was never written may hold anything.
        for parameter in (*diffusion.head.parameters(), *lm.head.parameters()):
            parameter.normal_(std=0.02)
    for model in (diffusion, lm):
        model.eval()
        model.config.end_token_id = -1
    return diffusion, lm


def measure(model: BitLMForCausalLM, batch: int, sampling: Sampling, args: argparse.Namespace) -> dict[str, float]:
    """Median seconds of a generation: as many as ``--seconds`` allow, at most 5, after one that is not counted."""
    draw = torch.Generator().manual_seed(1)
    prompts = torch.randint(model.config.vocab_size, (batch, args.prompt_tokens), generator=draw).tolist()
    times: list[float] = []
    begin = time.perf_counter()
    output = model.generate(prompts, sampling=sampling, max_new_tokens=2 * model.config.block_size)
    while not times or (len(times) < 5 and time.perf_counter() - begin + times[-1] < args.seconds):
        start = time.perf_counter()
        output = model.generate(prompts, sampling=sampling)  # ends with ids on the host, so nothing is left running
        times.append(time.perf_counter() - start)
    seconds, tokens = statistics.median(times), batch * sampling.max_new_tokens
    return {
        "tokens_per_second": tokens / seconds,
        "seconds": seconds,
        "repeats": len(times),
        "head_calls_per_token": sum(output.calls) / tokens,
        "backbone_passes_per_token": sum(output.blocks) / tokens,
    }


def rows(diffusion: BitLMForCausalLM, lm: BitLMForCausalLM, args: argparse.Namespace) -> list[dict[str, Any]]:
    found = []
    for batch in args.batch:
        base = measure(lm, batch, Sampling(max_new_tokens=args.new_tokens), args)
        found.append({"head": "lm", "batch": batch, "K": None, "omega": None, "ratio": 1.0, **base})
        print(_line(found[-1]), flush=True)
        for omega in args.omega:
            for K in args.steps:
                sampling = Sampling(
                    max_new_tokens=args.new_tokens, num_steps=K, guidance_scale=omega, compile=args.compile
                )
                made = measure(diffusion, batch, sampling, args)
                ratio = made["tokens_per_second"] / base["tokens_per_second"]
                found.append({"head": "diffusion", "batch": batch, "K": K, "omega": omega, "ratio": ratio, **made})
                print(_line(found[-1]), flush=True)
    return found


def _line(row: dict[str, Any]) -> str:
    cells = [row["batch"], row["head"], row["K"] or "", "" if row["omega"] is None else f"{row['omega']:g}"]
    cells += [f"{row['backbone_passes_per_token']:.2f}", f"{row['head_calls_per_token']:.2f}"]
    return "| " + " | ".join(map(str, [*cells, f"{row['tokens_per_second']:,.0f}", f"{row['ratio']:.2f}"])) + " |"


def machine(args: argparse.Namespace, diffusion: BitLMForCausalLM, lm: BitLMForCausalLM) -> dict[str, Any]:
    name = f"{platform.processor() or platform.machine()} CPU"
    if args.device.startswith("cuda"):
        name = torch.cuda.get_device_name(args.device)
    counts = {
        "backbone": sum(p.numel() for p in diffusion.model.parameters()),
        "diffusion_head": sum(p.numel() for p in diffusion.head.parameters()),
        "lm_head_own": sum(p.numel() for p in lm.head.parameters()),
    }
    return {
        "device": name,
        "threads": torch.get_num_threads(),
        "cpus": os.cpu_count(),
        "torch": torch.__version__,
        "options": {key: value for key, value in vars(args).items() if key != "json"},
        "parameters": counts,
        "denoiser": diffusion.config.diffusion_head.denoiser,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scale", choices=SCALES, default="tiny")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--new-tokens", type=int, default=32)
    parser.add_argument("--prompt-tokens", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=4.0, help="per line of the table, about")
    parser.add_argument("--batch", type=int, nargs="+", default=BATCHES)
    parser.add_argument("--steps", type=int, nargs="+", default=STEPS, help="K")
    parser.add_argument("--omega", type=float, nargs="+", default=OMEGAS, help="ω")
    parser.add_argument("--set", action="append", default=[], dest="assignments", metavar="STAGE.KEY=VALUE")
    parser.add_argument("--json", metavar="FILE")
    args = parser.parse_args()
    try:
        find_device(args.device)
    except ConfigError as error:
        parser.error(str(error))
    diffusion, lm = models(args)
    about = machine(args, diffusion, lm)
    print(f"{args.scale}, {args.dtype}, {about['device']}, {about['denoiser']} denoiser, compile = {args.compile}\n")
    print("| batch | head | K | ω | backbone passes/token | head calls/token | tokens/s | against the LM head |")
    print("|---|---|---|---|---|---|---|---|", flush=True)
    found = rows(diffusion, lm, args)
    if args.device.startswith("cuda"):
        about["peak_gib"] = torch.cuda.max_memory_allocated(args.device) / 2**30
    if args.json:
        Path(args.json).write_text(json.dumps({**about, "rows": found}, indent=1), encoding="utf8")


if __name__ == "__main__":
    main()
