"""How often each token occurs in the training text: what the codebook head takes for known before any context."""

from collections.abc import Iterable
from contextlib import AbstractContextManager

import numpy as np
import torch
from torch import Tensor

from bitlm.data.shards.format import Shard

MOST_TOKENS = 50_000_000  # more would change the frequencies of none but the rarest tokens
_CHUNK = 2**20


def unigram_counts(shards: Iterable[AbstractContextManager[Shard]], vocab_size: int, most: int = MOST_TOKENS) -> Tensor:
    """Exact counts [V], int64, over the first ``most`` tokens of shards in their order; end tokens count.

    Each shard is readable within its context (``OpenShards.shard``), which is entered only if its tokens are needed.
    """
    counts = np.zeros(vocab_size, dtype=np.int64)
    left = most
    for context in shards:
        with context as shard:
            wanted = min(shard.tokens, left)
            for start in range(0, wanted, _CHUNK):
                ids = shard.ids(start, min(_CHUNK, wanted - start))
                counts += np.bincount(ids, minlength=vocab_size)
        left -= wanted
        if not left:
            break
    return torch.from_numpy(counts)
