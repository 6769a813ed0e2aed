"""The model: configuration, backbone, heads, generation."""

from bitlm.model.config import BitLMConfig
from bitlm.model.generation import BlockStep, GenerateOutput, generate, stream_blocks
from bitlm.model.model import BitLMForCausalLM, BitLMOutput
from bitlm.model.sampling import Sampling

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
