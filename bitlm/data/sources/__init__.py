"""Where text comes from: files, the Hub, docstrings; checked rows of it; and which split a text belongs to."""
