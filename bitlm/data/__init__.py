"""Text to tokens: sources, checked rows, splits, tokenizer, packed shards, their order, and batches."""
