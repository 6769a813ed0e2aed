"""BitLM: a language model that writes tokens as binary codes."""
