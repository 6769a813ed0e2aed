"""Speed of training at a full vocabulary: the heads beside Transformers' Qwen3 with its softmax, in one process.

    python benchmarks/training.py                        # the 0.6B's width, 4 layers, 256 tokens, CPU, float32
    python benchmarks/training.py --layers 28 --batch 16 --length 1024 --device cuda --dtype bfloat16

A step is forward, backward and AdamW's update. All contenders stand on the same backbone modules, and in every round
each takes one step, so that what else the machine does meets them alike. Times are the least of all rounds; the first
round, in which memory is got, is not counted. Ratios are of tokens/s, to those of the first row.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Qwen3ForCausalLM, Qwen3Model

from bitlm.codes import min_bits
from bitlm.config import DiffusionConfig, TrainConfig, configure
from bitlm.devices import find_device
from bitlm.errors import ConfigError
from bitlm.model import BitLMConfig, BitLMForCausalLM
from bitlm.model.config import QWEN3_IDS, Vocabulary
from bitlm.train.optimizer import make_optimizer

PEER = "transformers"
CODEBOOK = ("model.head.denoiser=codebook", "pretrain.diffusion.loss=token")
CHAIN = (
    *CODEBOOK,
    "model.head.attention=causal",
    "model.head.context_path=attention",
    "pretrain.diffusion.chain_slots=1",
    "pretrain.diffusion.noise_share=0",
)
CHAIN_2, NOISE_2 = (*CHAIN, "model.head.num_layers=2"), (*CODEBOOK, "model.head.num_layers=2")
RANK = "model.head.codebook_rank=256"
ROWS: dict[str, tuple[str, ...]] = {
    PEER: (),
    "lm": (),
    "article": (),
    "chain-2": CHAIN_2,
    "chain-6": CHAIN,
    "chain-2-rank": (*CHAIN_2, RANK),
    "chain-2-offsets": (*CHAIN_2, "model.mask=causal", "pretrain.diffusion.block_offsets=4"),
    "noise-2": NOISE_2,
    "noise-2-rank": (*NOISE_2, RANK),
    "noise-6-rank": (*CODEBOOK, RANK),
}
"""Settings that differ from those of the scale."""


class Contender:
    """A model on the common backbone, with an optimizer of its own for what is not the backbone's."""

    def __init__(self, model: nn.Module, diffusion: DiffusionConfig, train: TrainConfig) -> None:
        self.model = model
        self.arguments: dict[str, Any] = {"diffusion": diffusion} if isinstance(model, BitLMForCausalLM) else {}
        own = nn.ParameterList(own_parameters(model).values())
        self.optimizer = make_optimizer(own, train) if len(own) else None
        self.parameters = sum(parameter.numel() for parameter in own)
        self.seconds: list[tuple[float, float]] = []  # of forward and backward, of the update

    def step(self, ids: Tensor, of_backbone: torch.optim.Optimizer) -> None:
        begin = _now(ids.device)
        self.model(input_ids=ids, labels=ids, **self.arguments).loss.backward()
        middle = _now(ids.device)
        for optimizer in filter(None, (of_backbone, self.optimizer)):
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        self.seconds.append((middle - begin, _now(ids.device) - middle))


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def own_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Those that are not the backbone's."""
    shared = set(model.model.parameters())
    return {name: parameter for name, parameter in model.named_parameters() if parameter not in shared}


def contenders(args: argparse.Namespace) -> tuple[dict[str, Contender], torch.optim.Optimizer]:
    """By name, and the backbone's optimizer."""
    torch.set_default_dtype(getattr(torch, args.dtype))
    torch.manual_seed(0)
    found: dict[str, Contender] = {}
    backbone = None
    for name in args.rows:
        config = configure(args.scale, [f"model.num_layers={args.layers}", *args.assignments, *ROWS[name]])
        vocabulary = Vocabulary(args.vocabulary, min_bits(args.vocabulary), end_id=0, pad_id=0)
        made = BitLMConfig.from_sections(config.model, "lm" if name in (PEER, "lm") else "diffusion", vocabulary)
        if backbone is None:
            with torch.device(args.device):
                backbone = Qwen3Model(made.backbone())
        with torch.device("meta"):
            model = Qwen3ForCausalLM(made.backbone()) if name == PEER else BitLMForCausalLM(made)
        _put_on(model, backbone, args.device)
        found[name] = Contender(model, config.pretrain.diffusion, config.pretrain)
    return found, make_optimizer(backbone, config.pretrain)


def _put_on(model: nn.Module, backbone: Qwen3Model, device: str) -> None:
    """Tied to the backbone's embedding; what is the model's own becomes random."""
    model.model = backbone
    if isinstance(model, Qwen3ForCausalLM):
        model.lm_head.weight = backbone.embed_tokens.weight
    else:
        model.head.to_empty(device=device)
        for buffer in model.head.buffers():
            buffer.zero_()
    for name, parameter in own_parameters(model).items():
        owner, _, key = name.rpartition(".")
        values = torch.empty(parameter.shape, device=device).normal_(std=0.02)
        setattr(model.get_submodule(owner), key, nn.Parameter(values))
    model.train()


def rows(found: dict[str, Contender], tokens: int) -> list[dict[str, Any]]:
    table = []
    for name, contender in found.items():
        seconds = [tokens / min(times) for times in _times(contender)]
        table.append({"name": name, "own_parameters": contender.parameters} | dict(zip(SPEEDS, seconds, strict=True)))
    for row in table:
        row["ratios"] = [row[speed] / table[0][speed] for speed in SPEEDS]
    return table


SPEEDS = ("tokens_per_second", "tokens_per_second_without_update")


def _times(contender: Contender) -> tuple[list[float], list[float]]:
    counted = contender.seconds[1:]
    return [sum(parts) for parts in counted], [gradient for gradient, _ in counted]


def parsed(words: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scale", default="0.6b")
    parser.add_argument("--layers", type=int, default=4, help="of the backbone")
    parser.add_argument("--vocabulary", type=int, default=QWEN3_IDS, help="V")
    parser.add_argument("--batch", type=int, default=1, help="sequences")
    parser.add_argument("--length", type=int, default=256, help="tokens of a sequence")
    parser.add_argument("--rows", type=lambda text: text.split(","), default=list(ROWS), help="names, with commas")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--set", action="append", default=[], dest="assignments", metavar="STAGE.KEY=VALUE")
    parser.add_argument("--json", metavar="FILE")
    args = parser.parse_args(words)
    if unknown := set(args.rows) - ROWS.keys():
        parser.error(f"--rows: {unknown.pop()} is none of {', '.join(ROWS)}")
    try:
        find_device(args.device)
    except ConfigError as error:
        parser.error(str(error))
    return args


def main() -> None:
    args = parsed()
    found, of_backbone = contenders(args)
    draw = torch.Generator().manual_seed(1)
    for _ in range(1 + args.rounds):
        ids = torch.randint(args.vocabulary, (args.batch, args.length), generator=draw).to(args.device)
        for contender in found.values():
            contender.step(ids, of_backbone)
    print(
        f"{args.scale}, {args.layers} layers, V = {args.vocabulary:,}, {ids.numel():,} tokens, {args.dtype}, ", end=""
    )
    print(f"{args.device}, {torch.get_num_threads()} threads\n")
    print("| head | own parameters | tokens/s | ratio | without the update | ratio |\n|---|---|---|---|---|---|")
    table = rows(found, ids.numel())
    for row in table:
        cells = [f"{row[speed]:,.0f} | {ratio:.2f}" for speed, ratio in zip(SPEEDS, row["ratios"], strict=True)]
        print(f"| {row['name']} | {row['own_parameters'] / 1e6:.1f}M | {' | '.join(cells)} |")
    if args.json:
        Path(args.json).write_text(json.dumps({"options": vars(args), "rows": table}, indent=1), encoding="utf8")


if __name__ == "__main__":
    main()
