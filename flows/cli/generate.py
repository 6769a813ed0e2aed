"""``bitlm generate``: continue prompts with a model, block by block as they are realized."""

import argparse
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from bitlm.errors import ConfigError
from bitlm.text import printable
from bitlm_flows.cli.options import add_json, add_root
from bitlm_flows.cli.output import print_json

if TYPE_CHECKING:
    from torch import Tensor

    from bitlm.data.shards.tokenizer import TextTokenizer
    from bitlm.generation import Sampling
    from bitlm.model import BitLMForCausalLM

OPTIONS: dict[str, dict[str, Any]] = {
    "max_new_tokens": {"type": int, "default": 64},
    "sampler": {
        "choices": ("descent", "commit"),
        "help": "descent: K steps from noise to the signs of the code (default); commit: slots land on tokens",
    },
    "guidance_scale": {"type": float, "help": "ω; 1 is no guidance (default: 9 for descent, 1 for commit)"},
    "guidance_form": {"choices": ("prediction", "logit", "token"), "help": "what is guided"},
    "num_steps": {"type": int, "help": "descent: K, denoising steps per block (default: 15)"},
    "solver": {"choices": ("euler", "dpmpp_2m"), "help": "descent: of first order (default) or DPM-Solver++(2M)"},
    "guidance_low": {"type": float, "help": "descent: guide from this noise level (default: 0)"},
    "guidance_high": {"type": float, "help": "descent: to this one (default: 1)"},
    "time_grid": {"choices": ("uniform", "shifted")},
    "time_shift": {"type": float, "help": "of the shifted grid (default: 3)"},
    "stagger": {"type": float, "help": "descent: 0: all slots of a block together (default); 1: one after the other"},
    "void": {"choices": ("clamp", "nearest"), "help": "descent: what a code of no token becomes"},
    "order": {"choices": ("left", "surest"), "help": "commit: which slots land next (default: left)"},
    "slots_per_call": {"type": int, "help": "commit: slots that land in a call, at least (default: 1)"},
    "threshold": {"type": float, "help": "commit: slots whose best token is more probable land too (default: none)"},
    "temperature": {"type": float, "help": "commit, LM head: 0 takes the most probable token (default)"},
    "seed": {"type": int},
}


def add_parser(commands: Any) -> None:
    parser = commands.add_parser("generate", help="continue a prompt with a model")
    parser.add_argument(
        "--model",
        required=True,
        metavar="ID|FOLDER",
        help="a pretrain or finetune artifact, for example finetune/tiny-diffusion, or a folder of model and tokenizer",
    )
    parser.add_argument("--prompt", required=True, action="append", metavar="TEXT", help="may be given several times")
    add_root(parser)
    for name, settings in OPTIONS.items():
        parser.add_argument(f"--{name.replace('_', '-')}", **settings)
    parser.add_argument("--compile", action="store_true", help="compile the head; slow at first, faster from then on")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="precision of the weights")
    parser.add_argument("--device", help="cpu, cuda or cuda:N; by default a GPU where there is one")
    parser.add_argument("--trace", action="store_true", help="print at which step each bit took its final sign")
    add_json(parser, help="generate all prompts in one batch and print JSON")
    parser.set_defaults(command=run)


def run(args: argparse.Namespace) -> int:
    import torch  # this, transformers and the model take seconds to load
    from transformers.utils import logging

    from bitlm.devices import find_device, gpu_memory
    from bitlm.evaluate.predictions import load_model
    from bitlm.generation import Sampling

    options = {name: getattr(args, name) for name in OPTIONS if getattr(args, name) is not None}
    sampling = Sampling(trace=args.trace, compile=args.compile, **options)
    logging.disable_progress_bar()
    device = find_device(args.device)
    model, tokenizer = load_model(args.root, args.model)
    prompts = [tokenizer.encode(prompt) for prompt in args.prompt]
    for text, prompt in zip(args.prompt, prompts, strict=True):
        if not prompt:
            raise ConfigError(f"--prompt {text!r} is empty: give at least one character")
    with gpu_memory("give fewer or shorter prompts, or --device cpu"):
        model.to(device, getattr(torch, args.dtype))
        if args.json:
            print_json(_batch(model, tokenizer, args.prompt, prompts, sampling))
        else:
            _print(model, tokenizer, args.prompt, prompts, sampling)
    return 0


def _print(
    model: "BitLMForCausalLM",
    tokenizer: "TextTokenizer",
    texts: Sequence[str],
    prompts: Sequence[Sequence[int]],
    sampling: "Sampling",
) -> None:
    """Each prompt and its text, as it comes."""
    for number, prompt in enumerate(prompts):
        print("\n" * (number > 0) + printable(texts[number]), end="", flush=True)
        for piece in _pieces(model, tokenizer, prompt, number, sampling):
            print(printable(piece), end="", flush=True)
        print()


def _batch(
    model: "BitLMForCausalLM",
    tokenizer: "TextTokenizer",
    texts: Sequence[str],
    prompts: Sequence[Sequence[int]],
    sampling: "Sampling",
) -> list[dict[str, Any]]:
    """What ``--json`` prints: a dictionary for each prompt."""
    from bitlm.diffusion.sampler import commit_steps  # torch takes seconds to load

    output = model.generate(prompts, sampling=sampling)
    results = []
    for row, text in enumerate(texts):
        result = {
            "prompt": text,
            "text": tokenizer.decode(output.ids[row]).strip(),
            "tokens": len(output.ids[row]),
            "ended": output.ended[row],
            "blocks": output.blocks[row],
            "head_calls": output.calls[row],
            "head_calls_saved": output.saved[row],
        }
        if sampling.trace:
            states = output.states[row]
            result["commit_steps"] = [commit_steps(block).tolist() for block in states]
            result["values"] = [block.double().round(decimals=4).tolist() for block in states]
        results.append(result)
    return results


def _pieces(
    model: "BitLMForCausalLM", tokenizer: "TextTokenizer", prompt: Sequence[int], number: int, sampling: "Sampling"
) -> Iterator[str]:
    """What to print for one prompt, block by block. ``number``, its place among the prompts, keys the random numbers,
    so that the text is the same as in a batch.
    """
    ids: list[int] = []
    shown = 0
    text = ""
    for block, step in enumerate(model.stream([prompt], example_ids=[number], sampling=sampling)):
        ids += step.ids[0]
        text = tokenizer.decode(ids)
        if step.states is not None:
            labels = [repr(tokenizer.decode([token])) for token in step.ids[0]]
            yield "\n".join(["", f"block {block}, {step.calls[0]} head calls", *trace_lines(step.states[0], labels)])
        elif not text.endswith("\N{REPLACEMENT CHARACTER}"):  # else the last character is incomplete
            yield text[shown:]
            shown = len(text)
    yield f"\n\n{text}" if sampling.trace else text[shown:]


def trace_lines(states: "Tensor", labels: Sequence[str]) -> list[str]:
    """The trace of a block, ``states`` [S+1, m, B], as a table: a line for each token, a column for each bit, the most
    significant bit first.

    A cell is the step after which the bit kept its sign; "·" if it had that sign in the noise already. ``labels`` are
    the texts of the tokens; slots after the end token have none.
    """
    from bitlm.diffusion.sampler import commit_steps  # torch takes seconds to load

    rows = commit_steps(states).tolist()
    B, cell = len(rows[0]), len(str(max(len(states) - 1, len(rows[0]) - 1))) + 1
    labels = [*labels, *["—"] * (len(rows) - len(labels))]
    width = max(len(label) for label in ["bit", *labels])
    lines = [f"  {'bit':<{width}}" + "".join(f"{bit:>{cell}}" for bit in range(B - 1, -1, -1))]
    for label, steps in zip(labels, rows, strict=True):
        lines.append(f"  {label:<{width}}" + "".join(f"{step or '·':>{cell}}" for step in steps))
    return lines
