"""Diffusion on codes: process, noise, losses, sampler, likelihood bound.

Shape suffixes: b sequences, N blocks of a sequence, n blocks in a row, r of them still at work, m slots of a block,
d noise draws, s strata of the bound's path, B bits, S states of a block (one more than its steps).
"""
