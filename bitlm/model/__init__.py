"""The model: configuration, backbone, heads, generation."""

from bitlm.model.config import BitLMConfig
from bitlm.model.generation import BlockStep, GenerateOutput, stream_blocks
from bitlm.model.model import BitLMForCausalLM, BitLMOutput

__all__ = ["BitLMConfig", "BitLMForCausalLM", "BitLMOutput", "BlockStep", "GenerateOutput", "stream_blocks"]
