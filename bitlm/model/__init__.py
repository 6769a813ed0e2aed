"""The model: configuration, backbone, heads, generation."""

from bitlm.generation.loop import BlockStep, GenerateOutput, generate, stream_blocks
from bitlm.generation.options import Sampling
from bitlm.model.config import BitLMConfig
from bitlm.model.model import BitLMForCausalLM, BitLMOutput

__all__ = [
    "BitLMConfig",
    "BitLMForCausalLM",
    "BitLMOutput",
    "BlockStep",
    "GenerateOutput",
    "Sampling",
    "generate",
    "stream_blocks",
]
