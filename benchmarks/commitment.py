"""Adaptive commitment: head calls that it saves, and what it changes in the texts, on a fine-tuned model.

    bitlm run && python benchmarks/commitment.py                          # finetune/tiny-diffusion below ./artifacts
    python benchmarks/commitment.py --root URL --model finetune/0.6b-diffusion --device cuda --examples 1000

Examples of the test split, with the prompts that the model was fine-tuned on. Each threshold is compared with the same
sampling that always takes all K steps: the same noise, the same batches.
"""

import argparse
import json
import time
from operator import eq
from pathlib import Path
from typing import Any

from transformers.utils import logging

from bitlm.artifacts.store import Store
from bitlm.config import PromptConfig
from bitlm.data.summaries.examples import read_examples
from bitlm.data.summaries.prompts import encode_prompts
from bitlm.devices import find_device
from bitlm.errors import ConfigError
from bitlm.evaluate.measures import MAIN_MEASURES
from bitlm.evaluate.predictions import batches, load_model
from bitlm.evaluate.rouge import score
from bitlm.generation import Sampling
from bitlm.model import BitLMForCausalLM

# What guidance does to |Â_0| decides what a threshold on it means, so every kind is tried.
GUIDANCE = ((1.0, "prediction"), (9.0, "prediction"), (9.0, "logit"))


def texts(
    model: BitLMForCausalLM, prompts: list[list[int]], sampling: Sampling, size: int
) -> tuple[list[list[int]], dict[str, float]]:
    """Token ids for every prompt, and what they cost."""
    ids: list[list[int]] = [[] for _ in prompts]
    calls = saved = blocks = 0
    started = time.perf_counter()
    for rows in batches([len(prompt) for prompt in prompts], set(), size):
        output = model.generate([prompts[row] for row in rows], example_ids=rows, sampling=sampling)
        for row, found in zip(rows, output.ids, strict=True):
            ids[row] = found
        calls, saved, blocks = calls + sum(output.calls), saved + sum(output.saved), blocks + sum(output.blocks)
    seconds = time.perf_counter() - started
    return ids, {"calls_per_block": calls / blocks, "saved": saved / (calls + saved), "seconds": seconds}


def changed(a: list[list[int]], b: list[list[int]]) -> tuple[float, float]:
    """Shares of texts, and of token places (the longer text's), in which two lists of texts differ."""
    places = sum(max(len(x), len(y)) for x, y in zip(a, b, strict=True))
    same = sum(sum(map(eq, x, y)) for x, y in zip(a, b, strict=True))
    return sum(x != y for x, y in zip(a, b, strict=True)) / len(a), (places - same) / max(places, 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", default="artifacts")
    parser.add_argument("--model", default="finetune/tiny-diffusion", metavar="ID", help="a finetune artifact")
    parser.add_argument("--examples", type=int, default=200)
    parser.add_argument("--thresholds", type=float, nargs="+", default=(0.9, 0.99, 0.999))
    parser.add_argument("--num-steps", type=int, default=15, help="K")
    parser.add_argument("--stagger", type=float, default=0.5)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", type=Path, metavar="FILE")
    args = parser.parse_args()
    try:
        device = find_device(args.device)
    except ConfigError as error:
        parser.error(str(error))
    logging.disable_progress_bar()
    store = Store(args.root)
    record = store.load(args.model)
    model, tokenizer = load_model(args.root, record.id)
    model.to(device)
    prompt = PromptConfig.model_validate(record.identity["prompt"])
    examples = list(read_examples(store, store.load(record.inputs["corpus"].id), "test", args.examples))
    prompts = encode_prompts(tokenizer, [example.document for example in examples], prompt)
    references = [example.summary for example in examples]
    print(f"{record.id}, {len(examples)} examples, K = {args.num_steps}, stagger {args.stagger:g}\n")
    print("| ω | guidance of | threshold | calls/block | saved | texts changed | tokens changed | ROUGE-1/2/L | s |")
    print("|---|---|---|---|---|---|---|---|---|", flush=True)
    found: list[dict[str, Any]] = []
    for omega, form in GUIDANCE:
        whole: list[list[int]] | None = None
        for threshold in (None, *args.thresholds):
            sampling = Sampling(
                max_new_tokens=prompt.max_summary_tokens,
                num_steps=args.num_steps,
                guidance_scale=omega,
                guidance_form=form,
                stagger=args.stagger,
                commit_threshold=threshold,
            )
            ids, cost = texts(model, prompts, sampling, args.batch)
            whole = ids if whole is None else whole
            other_texts, other_tokens = changed(whole, ids)
            rouge = score([tokenizer.decode(row).strip() for row in ids], references)
            f1 = [rouge[measure]["f1"] for measure in MAIN_MEASURES]
            found.append(
                {
                    "omega": omega,
                    "form": form,
                    "threshold": threshold,
                    **cost,
                    "texts_changed": other_texts,
                    "tokens_changed": other_tokens,
                    "rouge": f1,
                }
            )
            print(_line(found[-1]), flush=True)
    if args.json:
        args.json.write_text(json.dumps(found, indent=1), encoding="utf8")


def _line(row: dict[str, Any]) -> str:
    form = "–" if row["omega"] == 1 else {"prediction": "Â_0", "logit": "log-odds"}[row["form"]]
    cells = [
        f"{row['omega']:g}",
        form,
        row["threshold"] or "never",
        f"{row['calls_per_block']:.2f}",
        f"{row['saved']:.0%}",
        f"{row['texts_changed']:.1%}",
        f"{row['tokens_changed']:.2%}",
        "/".join(f"{f:.2f}" for f in row["rouge"]),
        f"{row['seconds']:.1f}",
    ]
    return f"| {' | '.join(map(str, cells))} |"


if __name__ == "__main__":
    main()
