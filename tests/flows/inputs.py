"""The files that the examples of docs/inputs.md name."""

import json
from collections.abc import Callable
from pathlib import Path

TEXT = b'{"text": "A text of its own.", "id": 1}\n'
MODELS = ("other-model", "misspelt-model", "no-weights")
SUMMARIES = b'{"document": "A text of its own.", "summary": "A text.", "id": 1}\n'


def _write_config(**changes: object) -> Callable[[Path], None]:
    """A function that writes the configuration of a small model, with these changes."""

    def write(path: Path) -> None:
        from bitlm.model import BitLMConfig  # torch takes seconds

        path.write_text(json.dumps(BitLMConfig().to_diff_dict() | changes, default=str))

    return write


def _words(path: Path) -> None:
    from tokenizers import Tokenizer, models

    Tokenizer(models.WordLevel({"<|endoftext|>": 0, "a": 1}, unk_token="<unk>")).save(str(path))


def _bytes(path: Path) -> None:
    from bitlm.config import TokenizerConfig
    from bitlm.data.shards.tokenizer import train

    path.write_bytes(train(["A text of its own."], TokenizerConfig(vocab_size=300)))


FILES: dict[str, bytes | Callable[[Path], None]] = {
    "text.jsonl": TEXT,
    "array.json": b'[{"text": "A text of its own."}]',
    "mixed/a.csv": b"",
    "mixed/b.jsonl.bz2": b"",
    "mixed/sub/c.jsonl.bz2": b"",
    "words.json": _words,
    "bytes/tokenizer.json": _bytes,
    "no-test/train.jsonl": SUMMARIES,
    "no-test/dev.jsonl": SUMMARIES,
    "misspelt.jsonl": b'{"Text": "A text of its own."}\n' * 2,
    **{f"summaries/{split}.jsonl": SUMMARIES for split in ("train", "dev", "test")},
    **{f"{folder}/{name}": b"{}" for folder in MODELS for name in ("tokenizer.json", "tokenizer_info.json")},
    "other-model/config.json": _write_config(model_type="qwen3"),
    "misspelt-model/config.json": _write_config(blok_size=4),
    "no-weights/config.json": _write_config(),
    "scripts.txt": "The cat sat.\n你好，世界。\nОн ушёл домой.\nประเทศไทย\n".encode(),
    "two.txt": b"one\ntwo\n",
    "other.txt": b"one\nthree\n",
    "two.csv": b"text\none\n",
    "null.jsonl": b'{"text": "one"}\n{"text": null}\n',
    "blank.jsonl": b'{"text": "one"}\n\n{"text": "two"}\n',
    "not-gzip.txt.gz": b"one\ntwo\n",
}
"""Path below the examples' folder → content, or a function that writes it to the given path."""


def write_all(folder: Path) -> None:
    for name, content in FILES.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, bytes):
            path.write_bytes(content)
        else:
            content(path)
