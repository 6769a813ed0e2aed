"""How an example becomes tokens: document, separator, summary, end token (method: fine-tuning and evaluation).

A row of a fine-tuning batch is ``[padding][document, separator][summary, end token][fill]``, the summary starting on a
block boundary. Loss is taken on the summary and its one end token. The fill, more end tokens that complete the last
block, carries none: the LM head, whose blocks are single tokens, has no fill. All rows have the same length whatever
their batch, so that an example's noise belongs to the same blocks in any batch.
"""

from collections.abc import Sequence

import torch

from bitlm.batch import Batch
from bitlm.config import PromptConfig
from bitlm.data.shards.tokenizer import TextTokenizer
from bitlm.data.summaries.examples import Example
from bitlm.errors import ConfigError


def encode_prompts(tokenizer: TextTokenizer, documents: Sequence[str], config: PromptConfig) -> list[list[int]]:
    """Ids of document and separator, at most ``max_prompt_tokens``; the document is cut, the separator never.

    Raises ConfigError where the separator leaves no room.
    """
    separator = tokenizer.encode(config.separator)
    room = config.max_prompt_tokens - len(separator)
    if room < 1:
        raise ConfigError(
            f"prompt.max_prompt_tokens = {config.max_prompt_tokens} leaves no room for a document beside the "
            f"{len(separator)} tokens of prompt.separator"
        )
    return [ids[:room] + separator for ids in tokenizer.encode_batch(list(documents))]


def encode_summaries(tokenizer: TextTokenizer, summaries: Sequence[str], config: PromptConfig) -> list[list[int]]:
    """Ids of the summary and one end token, ``max_summary_tokens`` at most; the summary is cut."""
    room = config.max_summary_tokens - 1
    return [[*ids[:room], tokenizer.info.end_id] for ids in tokenizer.encode_batch(list(summaries))]


def row_length(config: PromptConfig, block_size: int) -> int:
    """Tokens of every row: the longest prompt in whole blocks, and the longest summary."""
    return -(-config.max_prompt_tokens // block_size) * block_size + config.max_summary_tokens


def collate(
    tokenizer: TextTokenizer, examples: Sequence[Example], config: PromptConfig, block_size: int,
    indices: list[int], epochs: list[int],
) -> Batch:  # fmt: skip
    """Examples as a batch, padded on the left, with loss on the summaries and their end tokens alone."""
    prompts = encode_prompts(tokenizer, [example.document for example in examples], config)
    summaries = encode_summaries(tokenizer, [example.summary for example in examples], config)
    length = row_length(config, block_size)
    ids = torch.full((len(examples), length), tokenizer.info.pad_id, dtype=torch.int64)  # [b, L]
    mask = torch.zeros((len(examples), length), dtype=torch.int64)  # [b, L]
    in_loss = torch.zeros((len(examples), length), dtype=torch.bool)  # [b, L]
    for row, (prompt, summary) in enumerate(zip(prompts, summaries, strict=True)):
        fill = [tokenizer.info.end_id] * (-len(summary) % block_size)
        used = [*prompt, *summary, *fill]
        ids[row, length - len(used) :] = torch.tensor(used)
        mask[row, length - len(used) :] = 1
        in_loss[row, length - len(summary) - len(fill) : length - len(fill)] = True
    return Batch(ids, mask, in_loss, indices, epochs)
