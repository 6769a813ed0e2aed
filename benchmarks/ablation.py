"""The ablation: heads and trainings on the same tokens with the same seed, in nats per token of held-out text.

    python benchmarks/ablation.py                            # every row, 200 steps each
    python benchmarks/ablation.py --steps 800 --rows article,codebook-lm,codebook-noise,lm --judge
    python benchmarks/ablation.py --seconds 120 --resume     # equal time for each row; goes on where it was cut
    python benchmarks/ablation.py --rows codebook-lm,codebook-lm+pretrain.diffusion.noise_draws=4    # any other setting

A row is a list of settings of the pipeline: ``--command ROW`` prints the ``bitlm run`` that trains the same head. The
diffusion head's figures are upper bounds, the LM head's are exact. Tokens are made once, in the work folder.
"""

import argparse
import hashlib
import json
import os
import shutil
import statistics
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from ablation_judge import judge, print_judgement
from ablation_tokens import TokenBatches, made_tokens
from transformers.utils import logging

from bitlm.config import Head, PipelineConfig, configure
from bitlm.data.shards.tokenizer import INFO_FILE, TokenizerInfo
from bitlm.diffusion.bound import nats_per_token
from bitlm.model import BitLMConfig, BitLMForCausalLM
from bitlm.model.config import Vocabulary
from bitlm.model.transfer import take_backbone
from bitlm.train.loop import Folders, Setup, train
from bitlm.train.validate import spread

LENGTH = 256
FINAL_STRATA = 8
_DEEP = {"head_dim": 32, "head.num_layers": 3, "head.head_dim": 32}
SIZES = {
    "small": {"hidden_size": 128, "num_layers": 3, "num_heads": 4, "num_kv_heads": 2, "ffn_size": 384, **_DEEP},
    "trial": {"hidden_size": 192, "num_layers": 4, "num_heads": 6, "num_kv_heads": 3, "ffn_size": 640, **_DEEP},
}
VOCABULARY = 1024

PRESET = "tiny-article"  # the article's and BitDance's choices, which a row's settings change
BCE = ["pretrain.diffusion.loss=bce"]
MATCHED = [*BCE, "model.head.denoiser=matched_filter"]
PATHS = ["model.slot_embedding=true", "model.head.context_path=direct"]
MUON = ["pretrain.optimizer=muon"]
PRIOR = [*BCE, "model.head.denoiser=codebook_prior", *PATHS, *MUON]
TOKEN = ["pretrain.diffusion.loss=token", "model.head.denoiser=codebook"]
CODEBOOK = [*TOKEN, *PATHS, *MUON]
FROM_LM = ["pretrain.init_from=lm"]
SLOT_NOISE = ["pretrain.diffusion.slot_noise=0.7"]
LEVELS = ["pretrain.diffusion.slot_noise=1", "pretrain.diffusion.t_distribution=uniform"]


@dataclass(frozen=True)
class Row:
    """``settings`` lie over ``PRESET``; ``start`` is the row whose backbone is taken over."""

    name: str
    settings: list[str]
    head: Head = "diffusion"
    start: str | None = None


ROWS = {
    row.name: row
    for row in (
        Row("article", []),
        Row("x", ["pretrain.diffusion.loss=x"]),
        Row("bce", BCE),
        Row("matched", MATCHED),
        Row("paths", [*MATCHED, *PATHS]),
        Row("muon", [*MATCHED, *PATHS, *MUON]),
        Row("prior", PRIOR),
        Row("prior-lm", [*PRIOR, *FROM_LM], start="lm-muon"),
        Row("codebook", CODEBOOK),
        Row("codebook-lm", [*CODEBOOK, *FROM_LM], start="lm-muon"),
        Row("codebook-noise", [*CODEBOOK, *FROM_LM, *SLOT_NOISE], start="lm-muon"),
        Row("codebook-levels", [*CODEBOOK, *FROM_LM, *LEVELS], start="lm-muon"),
        Row("tiny", [*TOKEN, *FROM_LM, *LEVELS], start="lm"),
        Row("lm", [], head="lm"),
        Row("lm-qwen3", ["model.initialization=qwen3"], head="lm"),
        Row("lm-muon", MUON, head="lm"),
    )
}


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
    for row in _in_order(args.rows):
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


def row_of(name: str) -> Row:
    """``ROW`` or ``ROW+KEY=VALUE+…``."""
    base, *changes = name.split("+")
    return replace(ROWS[base], name=name, settings=[*ROWS[base].settings, *changes])


def _in_order(names: list[str]) -> Iterator[Row]:
    """The rows of these names, each after the one that it starts from."""
    seen: set[str] = set()
    for name in names:
        for needed in (row_of(name).start, name):
            if needed is not None and needed not in seen:
                seen.add(needed)
                yield row_of(needed)


def settings(row: Row, args: argparse.Namespace) -> list[str]:
    """All that the pipeline must be told to train this row."""
    shape = [f"model.{key}={value}" for key, value in SIZES[args.sizes].items()]
    training = [
        f"tokenizer.vocab_size={VOCABULARY}",
        f"pretrain.sequence_length={LENGTH}",
        f"pretrain.batch_size={args.batch}",
        f"pretrain.learning_rate={args.learning_rate}",
        f"pretrain.muon_learning_rate={args.muon_learning_rate}",
        f"pretrain.seed={args.seed}",
        f'pretrain.heads=["{row.head}"]',
    ]
    given = [*shape, *training, *row.settings, *args.set]
    last = {setting.partition("=")[0]: setting for setting in given}
    return list(last.values())


def _length(steps: int) -> list[str]:
    return [f"pretrain.steps={steps}", f"pretrain.warmup_steps={min(40, steps // 5)}"]


def _folder(row: Row, args: argparse.Namespace) -> Path:
    """Where a row's training is kept: its name tells apart whatever options change it."""
    told = json.dumps([settings(row, args), args.steps, args.seconds, args.points, args.validation])
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
    batches = TokenBatches(tokens, LENGTH, args.seed)
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
        "bounds": _bounds(_model(folder), batches, args),
    }


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


def _bounds(model: BitLMForCausalLM, batches: TokenBatches, args: argparse.Namespace) -> dict[str, Any]:
    """With more noise levels than in training, along the joint, a staggered and the one-after-the-other path."""
    indices = spread(batches.validation_count, args.validation * args.batch)
    parts = [indices[start : start + args.batch] for start in range(0, len(indices), args.batch)]
    found = {}
    for stagger in (0.0, 0.5, 1.0) if model.config.head == "diffusion" else (0.0,):
        bound = nats_per_token(model, map(batches.validation, parts), strata=FINAL_STRATA, stagger=stagger)
        slots = [slot.mean for slot in bound.slots]
        found[str(stagger)] = {"mean": bound.mean, "stderr": bound.stderr, "slots": slots}
    return found


def print_row(result: dict[str, Any]) -> None:
    points = ", ".join(f"{p['validation_nats_per_token']:.3f} after {p['step']} steps" for p in result["points"])
    print(f"{result['row']}: {result['training_seconds']:.0f} s; nats per token {points}", flush=True)


def print_table(results: list[dict[str, Any]]) -> None:
    """Markdown. The last point is taken again, with more noise levels, along three paths."""
    earlier = max(len(result["points"]) for result in results) - 1
    head = [
        "row",
        "params M",
        "steps",
        "s/step",
        *(f"point {i + 1}" for i in range(earlier)),
        "end",
        "slots",
        "stagger 0.5",
        "one after the other",
    ]
    print("Nats per token of held-out text ± standard error; of the diffusion head upper bounds, of the LM head exact.")
    print(f"| {' | '.join(head)} |\n|{' --- |' * len(head)}")
    for result in results:
        points = [_at(point) for point in result["points"][:-1]]
        joint = result["bounds"]["0.0"]
        others = [result["bounds"].get(stagger) for stagger in ("0.5", "1.0")]
        cells = [
            result["row"],
            f"{result['parameters']['total'] / 1e6:.2f}",
            f"{result['steps']}",
            f"{result['seconds_per_step']:.3f}",
            *points,
            *["–"] * (earlier - len(points)),
            f"**{joint['mean']:.3f}** ± {joint['stderr']:.3f}",
            " ".join(f"{slot:.2f}" for slot in joint["slots"]),
            *("–" if other is None else f"{other['mean']:.3f}" for other in others),
        ]
        print(f"| {' | '.join(cells)} |")


def _at(point: dict[str, Any]) -> str:
    return f"{point['validation_nats_per_token']:.3f} (step {point['step']})"


if __name__ == "__main__":
    main()
