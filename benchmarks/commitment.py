"""Token commitment on a fine-tuned model: head calls, what a sampler changes in the texts, and ROUGE.

    bitlm run && python benchmarks/commitment.py                          # finetune/tiny-diffusion below ./artifacts
    python benchmarks/commitment.py --root URL --model finetune/0.6b-diffusion --device cuda --examples 1000

Examples of the test split, with the prompts that the model was fine-tuned on. Each sampler is compared with the first:
slots one by one from the left, each on its most probable token.
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

COMMIT: dict[str, Any] = {"sampler": "commit"}
THRESHOLDS = (0.3, 0.5, 0.9)


def samplers(m: int) -> list[dict[str, Any]]:
    """Options of each line, for blocks of m slots."""
    several = [slots for slots in range(2, m + 1) if m % slots == 0]
    return [
        COMMIT,
        *({**COMMIT, "threshold": threshold} for threshold in THRESHOLDS),
        *({**COMMIT, "slots_per_call": slots} for slots in several),
        {**COMMIT, "order": "surest"},
        *({**COMMIT, "order": "surest", "slots_per_call": slots} for slots in several[:-1]),
        {**COMMIT, "order": "surest", "threshold": THRESHOLDS[1]},
        {**COMMIT, "guidance_scale": 2.0},
        {"stagger": 0.5},
        {},
    ]


def texts(
    model: BitLMForCausalLM, prompts: list[list[int]], sampling: Sampling, size: int
) -> tuple[list[list[int]], dict[str, float]]:
    """Token ids for every prompt, and what they cost."""
    ids: list[list[int]] = [[] for _ in prompts]
    calls = blocks = 0
    started = time.perf_counter()
    for rows in batches([len(prompt) for prompt in prompts], set(), size):
        output = model.generate([prompts[row] for row in rows], example_ids=rows, sampling=sampling)
        for row, found in zip(rows, output.ids, strict=True):
            ids[row] = found
        calls, blocks = calls + sum(output.calls), blocks + sum(output.blocks)
    return ids, {"calls_per_block": calls / blocks, "seconds": time.perf_counter() - started}


def changed(a: list[list[int]], b: list[list[int]]) -> tuple[float, float]:
    """Shares of texts, and of token places (the longer text's), in which two lists of texts differ."""
    places = sum(max(len(x), len(y)) for x, y in zip(a, b, strict=True))
    same = sum(sum(map(eq, x, y)) for x, y in zip(a, b, strict=True))
    return sum(x != y for x, y in zip(a, b, strict=True)) / len(a), (places - same) / max(places, 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", default="artifacts")
    parser.add_argument("--model", default="finetune/tiny-diffusion", metavar="ID", help="a finetune artifact")
    parser.add_argument("--examples", type=int, help="the first so many; by default all")
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
    print(f"{record.id}, {len(examples)} examples\n")
    print("| sampler | head calls/block | texts changed | tokens changed | ROUGE-1/2/L | s |")
    print("|---|---|---|---|---|---|", flush=True)
    found: list[dict[str, Any]] = []
    first: list[list[int]] | None = None
    for options in samplers(model.config.block_size):
        sampling = Sampling(max_new_tokens=prompt.max_summary_tokens, **options)
        ids, cost = texts(model, prompts, sampling, args.batch)
        first = ids if first is None else first
        other_texts, other_tokens = changed(first, ids)
        rouge = score([tokenizer.decode(row).strip() for row in ids], references)
        f1 = [rouge[measure]["f1"] for measure in MAIN_MEASURES]
        differences = {"texts_changed": other_texts, "tokens_changed": other_tokens}
        found.append({"sampler": sampling.name, "options": options, **cost, **differences, "rouge": f1})
        print(_line(found[-1]), flush=True)
    if args.json:
        args.json.write_text(json.dumps(found, indent=1), encoding="utf8")


def _line(row: dict[str, Any]) -> str:
    cells = [
        row["sampler"],
        f"{row['calls_per_block']:.2f}",
        f"{row['texts_changed']:.1%}",
        f"{row['tokens_changed']:.1%}",
        "/".join(f"{f:.2f}" for f in row["rouge"]),
        f"{row['seconds']:.1f}",
    ]
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    main()
