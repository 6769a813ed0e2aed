"""Diffusion on codes: process, noise, losses, sampler, likelihood bound."""
