"""Packed codes to batches: the order of the data, the open shards, sequences."""
