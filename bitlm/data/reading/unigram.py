"""How often each token occurs in the training text: what the codebook head takes for known before any context."""

from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor

from bitlm.data.shards.format import Shard

MOST_TOKENS = 50_000_000  # more would change the frequencies of none but the rarest tokens
_CHUNK = 2**20


def unigram_counts(paths: Iterable[str], vocab_size: int, most: int = MOST_TOKENS) -> Tensor:
    """Exact counts [V], int64, over the first ``most`` tokens of the shards at these local paths, in their order.

    End tokens count. A path is asked for only while tokens are wanted.
    """
    counts = np.zeros(vocab_size, dtype=np.int64)
    left = most
    for path in paths:
        shard = Shard(path)
        for start in range(0, min(shard.tokens, left), _CHUNK):
            ids = shard.ids(start, min(_CHUNK, min(shard.tokens, left) - start))
            counts += np.bincount(ids, minlength=vocab_size)
        left -= min(shard.tokens, left)
        if not left:
            break
    return torch.from_numpy(counts)
