"""How an example becomes tokens: document, separator, summary, end token (method: fine-tuning and evaluation).

A row of a fine-tuning batch is ``[padding][document, separator][summary, end tokens]``, the summary starting on a block
boundary. All rows have the same length whatever their batch, so that an example's noise belongs to the same blocks in
any batch.
"""

from collections.abc import Sequence

import torch

from bitlm.config import PromptConfig
from bitlm.data.shards.tokenizer import TextTokenizer
from bitlm.data.summaries.examples import Example
from bitlm.errors import ConfigError
from bitlm.model.batch import Batch


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


def encode_summaries(
    tokenizer: TextTokenizer, summaries: Sequence[str], config: PromptConfig, block_size: int
) -> list[list[int]]:
    """Ids of the summary and an end token, ``max_summary_tokens`` at most; end tokens fill the last block."""
    end = tokenizer.info.end_id
    found = []
    for ids in tokenizer.encode_batch(list(summaries)):
        ids = [*ids[: config.max_summary_tokens - 1], end]
        found.append(ids + [end] * (-len(ids) % block_size))
    return found


def row_length(config: PromptConfig, block_size: int) -> int:
    """Tokens of every row: the longest prompt in whole blocks, and the longest summary."""
    return -(-config.max_prompt_tokens // block_size) * block_size + config.max_summary_tokens


def collate(
    tokenizer: TextTokenizer, examples: Sequence[Example], config: PromptConfig, block_size: int,
    indices: list[int], epochs: list[int],
) -> Batch:  # fmt: skip
    """Examples as a batch, padded on the left; loss is taken on the blocks of the summaries alone."""
    prompts = encode_prompts(tokenizer, [example.document for example in examples], config)
    summaries = encode_summaries(tokenizer, [example.summary for example in examples], config, block_size)
    length = row_length(config, block_size)
    ids = torch.full((len(examples), length), tokenizer.info.pad_id, dtype=torch.int64)  # [b, L]
    mask = torch.zeros((len(examples), length), dtype=torch.int64)  # [b, L]
    blocks = torch.zeros((len(examples), length // block_size), dtype=torch.bool)  # [b, N]
    for row, (prompt, summary) in enumerate(zip(prompts, summaries, strict=True)):
        used = len(prompt) + len(summary)
        ids[row, length - used :] = torch.tensor(prompt + summary)
        mask[row, length - used :] = 1
        blocks[row, (length - len(summary)) // block_size :] = True
    return Batch(ids, mask, blocks, indices, epochs)
