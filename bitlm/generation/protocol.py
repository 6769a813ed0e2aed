"""What generation asks of a model. ``bitlm.model.BitLMForCausalLM`` has all of it."""

from typing import Any, Protocol

import torch
from torch import Tensor, nn
from transformers import Cache


class GenerativeConfig(Protocol):
    """Letters: m = ``block_size``, V = ``vocab_size``, B = ``num_bits``."""

    head: str
    block_size: int
    vocab_size: int
    num_bits: int
    end_token_id: int
    max_position_embeddings: int


class BlockTensors(Protocol):
    """What the head computes of C once per block; its tensors have one row for each block."""

    def tensors(self) -> dict[str, Tensor]: ...
    def map(self, change: Any) -> Any: ...
    def select(self, index: Tensor) -> Any: ...


class GenerativeModel(Protocol):
    """A backbone with a key/value cache and a head that realizes the next block from C.

    The diffusion head is called as ``head(noisy [n, m, B], t [n or 1, m], constants, block, time)`` → ``Posterior``,
    with ``constants`` from ``sampling_constants``, ``time`` its embedding of t [n or 1, m, H], and ``block`` from
    ``head.prepare_sampling(C, constants)``; one with ``self_conditioning`` also gets the last Â_0 [n, m, B].
    """

    config: Any  # a GenerativeConfig
    head: nn.Module

    @property
    def device(self) -> torch.device: ...

    def next_context(self, input_ids: Tensor, visible: Tensor | None, cache: Cache) -> Tensor:
        """Feed ids [r, q]; C [r, m, D] of the block that follows them."""
        ...

    def sampling_constants(self, t_S1m: Tensor, guided: bool) -> Any:
        """What the diffusion head computes once per generation: among it ``times`` [S, 1, m, H], the embeddings of S
        noise levels, and the null condition if ``guided``."""
        ...

    def walk_constants(self, guided: bool) -> Any:
        """The same for a head with ``keeps_slots``, for ``head.walk(constants, block, guided)``."""
        ...

    def token_logits(self, context: Tensor) -> Tensor:
        """LM head: C [..., D] → [..., V]."""
        ...
