"""The summarization set: examples, and how they become tokens."""
