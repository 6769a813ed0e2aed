"""The ablation: heads and trainings on the same tokens with the same seed, in nats per token of held-out text.

    python benchmarks/ablation.py                            # every row, 200 steps each
    python benchmarks/ablation.py --steps 800 --rows draws,chain,chain-all,lm-on --judge
    python benchmarks/ablation.py --seconds 120 --resume     # equal time for each row; goes on where it was cut
    python benchmarks/ablation.py --rows chain,chain+model.head.width=96    # any other setting

A row is a list of settings of the pipeline (``ablation_rows.py``): ``--command ROW`` prints the ``bitlm run`` that
trains the same head. Where one starts from another, such as ``chain`` and ``lm-on`` from ``lm``, it goes on behind the
batches that this one has seen, so that both heads are compared at the same tokens. Tokens are made once, in the work
folder.
"""

import argparse
import hashlib
import json
import os
import shutil
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from ablation_judge import judge, print_judgement
from ablation_rows import LENGTH, PRESET, ROWS, SIZES, VOCABULARY, Row, in_order, row_of
from ablation_table import PATHS, print_row, print_table
from ablation_tokens import TokenBatches, made_tokens
from transformers.utils import logging

from bitlm.config import PipelineConfig, configure
from bitlm.data.shards.tokenizer import INFO_FILE, TokenizerInfo
from bitlm.diffusion.bound import Bound, nats_per_token
from bitlm.diffusion.chain import chain_per_token
from bitlm.model import BitLMConfig, BitLMForCausalLM
from bitlm.model.config import Vocabulary
from bitlm.model.transfer import take_backbone
from bitlm.train.loop import Folders, Setup, train
from bitlm.train.validate import spread

FINAL_STRATA = 8


def main() -> None:
    args = _arguments()
    if args.command:
        chosen = " ".join(f"--set '{value}'" for value in [*settings(row_of(args.command), args), *_length(args.steps)])
        print(f"bitlm run pretrain --upstream --preset {PRESET} {chosen}")
        return
    torch.set_num_threads(args.threads)
    logging.disable_progress_bar()
    args.work.mkdir(parents=True, exist_ok=True)
    tokens = made_tokens(args.work, VOCABULARY)
    results: dict[str, Any] = {}
    for row in in_order(args.rows):
        results[row.name] = run(row, args, tokens)
        args.out.write_text(json.dumps({"options": _options(args), "rows": results}, indent=1))
        print_row(results[row.name])
    print()
    print_table([results[name] for name in args.rows])
    if args.judge:
        judged = [results[name] for name in args.rows if results[name]["head"] == "diffusion"]
        referee = run(ROWS["lm-muon"], args, tokens, again=False)
        models = {result["row"]: _model(result["folder"]) for result in judged}
        batches = TokenBatches(tokens, LENGTH, args.seed)
        found = judge(models, _model(referee["folder"]), batches, args.judged)
        args.out.write_text(json.dumps({"options": _options(args), "rows": results, "judged": found}, indent=1))
        print_judgement(found)


def _model(folder: str | Path) -> BitLMForCausalLM:
    return BitLMForCausalLM.load(Path(folder, "out", "model"))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", default=",".join(ROWS), help=f"of {', '.join(ROWS)}; ROW+KEY=VALUE changes one")
    parser.add_argument("--command", metavar="ROW", help="only print the pipeline's command for a row")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--seconds", type=float, help="instead of steps: each row trains about so long")
    parser.add_argument("--points", type=int, default=2, help="validations, evenly spaced, the last at the end")
    parser.add_argument("--batch", type=int, default=8, help=f"sequences of {LENGTH} tokens per step")
    parser.add_argument("--sizes", choices=SIZES, default="small")
    parser.add_argument("--learning-rate", type=float, default=3e-3)
    parser.add_argument("--muon-learning-rate", type=float, default=0.02)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="for every row")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--judge", action="store_true", help="let the LM head judge sampled blocks of every row")
    parser.add_argument("--judged", type=int, default=256, help="blocks that are judged")
    parser.add_argument("--validation", type=int, default=8, help="validation batches")
    parser.add_argument("--resume", action="store_true", help="keep what an earlier call with these options has done")
    parser.add_argument("--work", type=Path, default=Path("build/ablation"))
    parser.add_argument("--out", type=Path, help="JSON of all figures; by default results.json in the work folder")
    args = parser.parse_args()
    args.rows = args.rows.split(",")
    for name in (*args.rows, *([args.command] if args.command else [])):
        if name.partition("+")[0] not in ROWS:
            parser.error(f"row {name}: choose of {', '.join(ROWS)}")
    args.out = args.out or args.work / "results.json"
    return args


def _options(args: argparse.Namespace) -> dict[str, Any]:
    return {key: str(value) if isinstance(value, Path) else value for key, value in vars(args).items()}


def settings(row: Row, args: argparse.Namespace) -> list[str]:
    """All that the pipeline must be told to train this row. Only beside a diffusion head has the LM head a start."""
    heads = ["diffusion", "lm"] if row.head == "lm" and row.start else [row.head]
    shape = [f"model.{key}={value}" for key, value in SIZES[args.sizes].items()]
    training = [
        f"tokenizer.vocab_size={VOCABULARY}",
        f"pretrain.sequence_length={LENGTH}",
        f"pretrain.batch_size={args.batch}",
        f"pretrain.learning_rate={args.learning_rate}",
        f"pretrain.muon_learning_rate={args.muon_learning_rate}",
        f"pretrain.seed={args.seed}",
        f"pretrain.heads={json.dumps(heads)}",
    ]
    given = [*shape, *training, *row.settings, *args.set]
    last = {setting.partition("=")[0]: setting for setting in given}
    return list(last.values())


def _length(steps: int) -> list[str]:
    return [f"pretrain.steps={steps}", f"pretrain.warmup_steps={min(40, steps // 5)}"]


def _folder(row: Row, args: argparse.Namespace) -> Path:
    """Where a row's training is kept: its name tells apart whatever options change it."""
    start = row.start and _folder(ROWS[row.start], args).name
    told = json.dumps([settings(row, args), args.steps, args.seconds, args.points, args.validation, start])
    return args.work / f"{row.name.partition('+')[0]}-{hashlib.sha256(told.encode()).hexdigest()[:8]}"


def run(row: Row, args: argparse.Namespace, tokens: Path, again: bool = True) -> dict[str, Any]:
    """Train one row, or go on with it, and measure it."""
    folder = _folder(row, args)
    if again and not args.resume:
        shutil.rmtree(folder, ignore_errors=True)
    given = settings(row, args)
    steps = _steps(row, given, args, tokens, folder)
    every = max(1, steps // args.points)
    config = configure(
        PRESET,
        [
            *given,
            *_length(steps),
            f"pretrain.validate_every={every}",
            f"pretrain.execution.checkpoint_every={every}",
            f"pretrain.validation_batches={args.validation}",
        ],
    )
    batches = TokenBatches(tokens, LENGTH, args.seed, _first_position(row, args))
    figures = train(setup(row, config, args, tokens, batches, folder), report=lambda line: None)
    lines = [json.loads(line) for line in (folder / "out" / "metrics.jsonl").read_text().splitlines()]
    return {
        "row": row.name,
        "head": row.head,
        "settings": given,
        "folder": str(folder),
        "parameters": figures["parameters"],
        "steps": steps,
        "seconds_per_step": statistics.median(line["seconds"] for line in lines if "loss" in line),
        "training_seconds": sum(line["seconds"] for line in lines if "loss" in line),
        "points": [line for line in lines if "loss" not in line],
        "nats": _held_out(_model(folder), batches, args),
    }


def _first_position(row: Row, args: argparse.Namespace) -> int:
    """Of the order of the data: behind what the start has seen, as in the pipeline."""
    if row.start is None:
        return 0
    steps = args.steps if args.seconds is None else int((_folder(ROWS[row.start], args) / "steps").read_text())
    return steps * args.batch


def setup(
    row: Row, config: PipelineConfig, args: argparse.Namespace, tokens: Path, batches: TokenBatches, folder: Path
) -> Setup:
    info = TokenizerInfo.model_validate_json((tokens / INFO_FILE).read_bytes())
    vocabulary = Vocabulary(info.vocab_size, info.num_bits, info.end_id, info.pad_id)
    described = BitLMConfig.from_sections(config.model, row.head, vocabulary)

    def model() -> BitLMForCausalLM:
        torch.manual_seed(args.seed)
        made = BitLMForCausalLM(described)
        if row.start is not None:
            take_backbone(made, _folder(ROWS[row.start], args) / "out" / "model", row.start)
        if described.has_codebook:
            made.set_unigram(batches.counts(info.vocab_size))
        return made

    folders = Folders(str(folder / "checkpoints"), str(folder / "out"))
    return Setup(config.pretrain, described, model, batches, folders, {})


def _steps(row: Row, given: list[str], args: argparse.Namespace, tokens: Path, folder: Path) -> int:
    """As many as were asked for, or as take the seconds that were asked for, by the time of a few first ones."""
    if args.seconds is None:
        return args.steps
    known = folder / "steps"
    if not known.exists():
        batches, probe = TokenBatches(tokens, LENGTH, args.seed), folder / "probe"
        config = configure(
            PRESET,
            [
                *given,
                *_length(8),
                "pretrain.validate_every=8",
                "pretrain.validation_batches=1",
                "pretrain.execution.checkpoint_every=8",
            ],
        )
        told: list[dict[str, Any]] = []
        train(setup(row, config, args, tokens, batches, probe), report=told.append)
        shutil.rmtree(probe)
        known.write_text(str(max(10, int(args.seconds / statistics.median(t["seconds"] for t in told[2:8])))))
    return int(known.read_text())


def _held_out(model: BitLMForCausalLM, batches: TokenBatches, args: argparse.Namespace) -> dict[str, Any]:
    """Nats per token: the LM head's are ``exact``; of the diffusion head the ``chain``, and the bound along ``PATHS``
    with more noise levels than in training."""
    indices = spread(batches.validation_count, args.validation * args.batch)
    parts = [indices[start : start + args.batch] for start in range(0, len(indices), args.batch)]

    def figures(measure: Callable[..., Bound], **options: Any) -> dict[str, Any]:
        bound = measure(model, map(batches.validation, parts), **options)
        return {"mean": bound.mean, "stderr": bound.stderr, "slots": [slot.mean for slot in bound.slots]}

    if model.config.head == "lm":
        return {"exact": figures(nats_per_token)}
    bounds = {path: figures(nats_per_token, strata=FINAL_STRATA, stagger=stagger) for path, stagger in PATHS.items()}
    return {"chain": figures(chain_per_token), **bounds}


if __name__ == "__main__":
    main()
