"""Text to packed codes: tokenizer, units of work, and the format of the shards."""
