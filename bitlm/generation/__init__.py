"""Generation: options, key/value cache, denoising, realization of a block, and the loop over blocks.

It speaks to a model through ``GenerativeModel`` (protocol.py), never the other way round.

Shape suffixes: r rows still at work, n blocks, m slots of a block, B bits, D backbone width, V tokens.
"""

from bitlm.generation.loop import BlockStep, GenerateOutput
from bitlm.generation.options import Sampling

__all__ = ["BlockStep", "GenerateOutput", "Sampling"]
