"""How an example becomes tokens: document, separator, summary, end token (method: fine-tuning and evaluation).

A row of a fine-tuning batch is ``[padding][document, separator][summary, end token][fill]``, the summary starting on a
block boundary. Loss is taken on the summary and its one end token. The fill, more end tokens that complete the last
block, carries none: the LM head, whose blocks are single tokens, has no fill. All rows have the same length whatever
their batch, so that an example's noise belongs to the same blocks in any batch.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from bitlm.batch import Batch
from bitlm.config import PromptConfig
from bitlm.data.shards.tokenizer import TextTokenizer
from bitlm.data.summaries.examples import Example
from bitlm.errors import ConfigError


@dataclass(frozen=True)
class SummaryFormat:
    """How examples become rows: by this tokenizer, with these lengths and this separator, in blocks of m tokens."""

    tokenizer: TextTokenizer
    prompt: PromptConfig
    block_size: int

    @property
    def length(self) -> int:
        """Tokens of every row: the longest prompt in whole blocks, and the longest summary."""
        prompt_blocks = -(-self.prompt.max_prompt_tokens // self.block_size)
        return prompt_blocks * self.block_size + self.prompt.max_summary_tokens


def encode_prompts(tokenizer: TextTokenizer, documents: Sequence[str], config: PromptConfig) -> list[list[int]]:
    """Ids of document and separator, at most ``max_prompt_tokens``; the document is cut, the separator never.

    Raises ConfigError if the separator leaves no room.
    """
    separator = tokenizer.encode(config.separator)
    room = config.max_prompt_tokens - len(separator)
    if room < 1:
        raise ConfigError(
            f"prompt.max_prompt_tokens = {config.max_prompt_tokens} leaves no room for a document beside the "
            f"{len(separator)} tokens of prompt.separator"
        )
    return [tokenizer.encode_start(document, room) + separator for document in documents]


def encode_summaries(tokenizer: TextTokenizer, summaries: Sequence[str], config: PromptConfig) -> list[list[int]]:
    """Ids of the summary and one end token, ``max_summary_tokens`` at most; the summary is cut."""
    room = config.max_summary_tokens - 1
    return [[*tokenizer.encode_start(summary, room), tokenizer.info.end_id] for summary in summaries]


def collate(summary_format: SummaryFormat, examples: Sequence[Example], indices: list[int], epochs: list[int]) -> Batch:
    """Examples as a batch, padded on the left, with loss on the summaries and their end tokens alone."""
    tokenizer, prompt = summary_format.tokenizer, summary_format.prompt
    prompts = encode_prompts(tokenizer, [example.document for example in examples], prompt)
    summaries = encode_summaries(tokenizer, [example.summary for example in examples], prompt)
    b, L = len(examples), summary_format.length
    ids_bL = torch.full((b, L), tokenizer.info.pad_id, dtype=torch.int64)
    attention_mask_bL = torch.zeros((b, L), dtype=torch.int64)
    loss_tokens_bL = torch.zeros((b, L), dtype=torch.bool)
    for row, (prompt_ids, summary) in enumerate(zip(prompts, summaries, strict=True)):
        fill = [tokenizer.info.end_id] * (-len(summary) % summary_format.block_size)
        end = L - len(fill)  # of the summary
        start = end - len(summary)
        ids_bL[row, start - len(prompt_ids) :] = torch.tensor([*prompt_ids, *summary, *fill])
        attention_mask_bL[row, start - len(prompt_ids) :] = 1
        loss_tokens_bL[row, start:end] = True
    return Batch(ids_bL, attention_mask_bL, loss_tokens_bL, indices, epochs)
