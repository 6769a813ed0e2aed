"""Generation: options, key/value cache, denoising, realization of a block, and the loop over blocks."""
