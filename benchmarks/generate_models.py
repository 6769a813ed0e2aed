"""What the benchmark of generation measures: both heads on one backbone with random weights, or two trained models."""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from bitlm.artifacts.store import Store
from bitlm.codes import min_bits
from bitlm.config import PromptConfig, configure
from bitlm.data.shards.tokenizer import TextTokenizer
from bitlm.data.summaries.examples import Example, read_examples
from bitlm.data.summaries.prompts import encode_prompts, encode_summaries
from bitlm.errors import ConfigError
from bitlm.evaluate.predictions import load_model
from bitlm.model import BitLMConfig, BitLMForCausalLM
from bitlm.model.config import QWEN3_IDS, Vocabulary

HEAD = ("mask", "head.denoiser", "head.attention", "head.context_path", "head.num_layers")
"""The settings below ``model`` in which ``tiny``'s head differs from the article's."""


@dataclass(frozen=True)
class Pair:
    """A diffusion head's model and an LM head's, in evaluation mode."""

    diffusion: BitLMForCausalLM
    lm: BitLMForCausalLM

    def of(self, head: str) -> BitLMForCausalLM:
        return self.lm if head == "lm" else self.diffusion


@dataclass(frozen=True)
class Task:
    """Summaries to write. prompts: ids before each. references: the texts, and ``summaries`` their ids with an end
    token. max_new_tokens: of a summary."""

    tokenizer: TextTokenizer
    prompts: list[list[int]]
    references: list[str]
    summaries: list[list[int]]
    max_new_tokens: int

    @classmethod
    def of(cls, examples: Sequence[Example], tokenizer: TextTokenizer, prompt: PromptConfig) -> "Task":
        references = [example.summary for example in examples]
        prompts = encode_prompts(tokenizer, [example.document for example in examples], prompt)
        summaries = encode_summaries(tokenizer, references, prompt)
        return cls(tokenizer, prompts, references, summaries, prompt.max_summary_tokens)


def codebook_settings(scale: str) -> list[str]:
    """Of the configuration, for a scale with the head of ``tiny``; where the vocabulary is large, of rank 256."""
    of_tiny = configure("tiny", []).model.model_dump(mode="json")
    found = []
    for key in HEAD:
        section, _, name = key.rpartition(".")
        found.append(f"model.{key}={of_tiny[section][name] if section else of_tiny[name]}")
    return found if scale.startswith("tiny") else [*found, "model.head.codebook_rank=256"]


def random_pair(args: argparse.Namespace) -> Pair:
    """Both heads on the very same backbone modules, of the shapes of a preset."""
    config = configure(args.scale, [*(codebook_settings(args.scale) if args.codebook else ()), *args.assignments])
    vocab_size = config.tokenizer.vocab_size if args.scale.startswith("tiny") else QWEN3_IDS
    vocabulary = Vocabulary(vocab_size, min_bits(vocab_size), end_id=0, pad_id=0)
    default = torch.get_default_dtype()
    torch.set_default_dtype(getattr(torch, args.dtype))
    torch.manual_seed(0)
    with torch.device(args.device):
        diffusion = BitLMForCausalLM(BitLMConfig.from_sections(config.model, "diffusion", vocabulary))
    with torch.device("meta"):
        lm = BitLMForCausalLM(BitLMConfig.from_sections(config.model, "lm", vocabulary))
    torch.set_default_dtype(default)
    lm.model = diffusion.model
    lm.start_block = nn.Parameter(diffusion.start_block.detach()[:1].clone())
    lm.head.to_empty(device=args.device)
    with torch.no_grad():
        # A fresh diffusion head answers 0 whatever it sees, and memory that was never written may hold anything.
        for parameter in (*diffusion.head.parameters(), *lm.head.parameters()):
            parameter.normal_(std=0.02)
    return Pair(diffusion.eval(), lm.eval())


def trained_pair(args: argparse.Namespace) -> tuple[Pair, Task]:
    """Two finetune artifacts, and the first test examples of their corpus.

    Raises ConfigError where they are not a diffusion head and an LM head that learned the same task.
    """
    store, ids = Store(args.root), args.models
    records = [store.load(name) for name in ids]
    heads = [record.identity.get("head") for record in records]
    if [record.stage for record in records] != ["finetune"] * 2 or heads != ["diffusion", "lm"]:
        raise ConfigError(f"{ids[0]}, {ids[1]}: give a finetune artifact of the diffusion head, and one of the LM head")
    ours, theirs = ((r.identity["prompt"], r.inputs["corpus"].id, r.inputs["tokenizer"].id) for r in records)
    if ours != theirs:
        raise ConfigError(f"{ids[0]} and {ids[1]} learned from other prompts, another corpus or another tokenizer")
    (diffusion, tokenizer), (lm, _) = (load_model(args.root, record.id) for record in records)
    examples = list(read_examples(store, store.load(records[0].inputs["corpus"].id), "test", args.examples))
    prompt = PromptConfig.model_validate(records[0].identity["prompt"])
    return Pair(diffusion.to(args.device), lm.to(args.device)), Task.of(examples, tokenizer, prompt)
