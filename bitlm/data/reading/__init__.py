"""Packed codes to batches: the order of the data, the shards at hand, sequences."""
