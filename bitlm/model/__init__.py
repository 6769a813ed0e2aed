"""The model: configuration, backbone, and heads.

Shape suffixes: b sequences, L tokens of a sequence, N blocks of a sequence, S places of [start block | tokens],
n blocks in a row, m slots of a block, d noise draws, B bits, D backbone width, H head width, V tokens, c tokens that a
codebook chooses from, k slots in a row, R columns of the codebook's rows, K steps of a sampler.
"""

from bitlm.model.config import BitLMConfig
from bitlm.model.model import BitLMForCausalLM, BitLMOutput

__all__ = ["BitLMConfig", "BitLMForCausalLM", "BitLMOutput"]
