"""The tokenizer artifact: byte-level BPE trained here, or a ready ``tokenizer.json``."""

import hashlib
from collections.abc import Iterable, Iterator
from functools import lru_cache
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from bitlm import storage
from bitlm.artifacts.record import Record
from bitlm.artifacts.store import Store
from bitlm.config import TokenizerConfig
from bitlm.config.stages import Frozen
from bitlm.data.shards.engine import without_added_tokens
from bitlm.errors import ConfigError, SourceError

TOKENIZER_FILE, INFO_FILE = "tokenizer.json", "tokenizer_info.json"
PAD_TOKEN = "<|pad|>"
# Qwen's pre-tokenization: contractions, words with the space before them, digits, punctuation, line breaks, spaces.
SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
WORD_BYTES = 1024  # of a word when merges are learned: the time for a word grows with the square of its length
START_CHARACTERS, START_MARGIN = 8, 256  # of a text's beginning: characters for a token, and tokens beyond those asked
PIECE_CHARACTERS = 2**20  # of a text that the library gets at a time: it needs up to 300 bytes for a character


class TokenizerInfo(Frozen):
    """``tokenizer_info.json``: V = ``vocab_size`` is the number of ids, B = ``num_bits``."""

    sha256: str
    vocab_size: int
    num_bits: int
    end_id: int
    pad_id: int
    end_token: str


class TextTokenizer:
    """Text to ids and back. Text never becomes a control token, whatever strings it holds."""

    def __init__(self, data: bytes, info: TokenizerInfo) -> None:
        self.info = info
        self._full = parse(data, TOKENIZER_FILE)
        self._plain = Tokenizer.from_str(without_added_tokens(data))

    @classmethod
    def load(cls, folder: str | Path) -> "TextTokenizer":
        """From a local folder that holds ``tokenizer.json`` and ``tokenizer_info.json``."""
        info = TokenizerInfo.model_validate_json(Path(folder, INFO_FILE).read_bytes())
        return cls(Path(folder, TOKENIZER_FILE).read_bytes(), info)

    def encode(self, text: str) -> list[int]:
        return self.encode_batch([text])[0]

    def encode_start(self, text: str, count: int) -> list[int]:
        """The first ``count`` ids of a text; of a long one, only a beginning that gives many more is encoded, so that
        its end has no part in them."""
        wanted = count + max(count, START_MARGIN)
        length = START_CHARACTERS * wanted
        ids = self.encode(text[:length])
        while length < len(text) and len(ids) < wanted:
            length *= 4
            ids = self.encode(text[:length])
        return ids[:count]

    def encode_batch(self, texts: list[str]) -> list[list[int]]:
        """Ids of each text, without any added token. The caller sets TOKENIZERS_PARALLELISM."""
        return [encoding.ids for encoding in self._plain.encode_batch_fast(texts, add_special_tokens=False)]

    def decode(self, ids: Iterable[int]) -> str:
        """The text of ids; control tokens are left out."""
        return self._full.decode([int(id) for id in ids], skip_special_tokens=True)


def load_tokenizer(store: Store, record: Record) -> TextTokenizer:
    """The tokenizer of a tokenizer artifact, verified, and kept for the next call. Raises ArtifactError."""
    return _parsed(store.read_bytes(record, TOKENIZER_FILE), store.read_bytes(record, INFO_FILE))


@lru_cache(maxsize=2)
def _parsed(tokenizer: bytes, info: bytes) -> TextTokenizer:
    return TextTokenizer(tokenizer, TokenizerInfo.model_validate_json(info))


def parse(data: bytes, name: str) -> Tokenizer:
    """Raises SourceError naming the file where it is not a tokenizer."""
    try:
        return Tokenizer.from_str(data.decode())
    except Exception as error:  # the library raises plain Exception
        raise SourceError(f"{name} is not a tokenizer.json ({error})") from error


def train(texts: Iterable[str], config: TokenizerConfig) -> bytes:
    """Byte-level BPE on the texts; the end and pad tokens are ids 0 and 1. The same texts give the same bytes.

    Words of more than ``WORD_BYTES`` are cut, in learning alone: the tokenizer that is returned encodes them whole.
    """
    split = [
        pre_tokenizers.Split(Regex(SPLIT), behavior="isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*split, pre_tokenizers.FixedLength(WORD_BYTES)])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=config.vocab_size,
        special_tokens=[config.end_token, PAD_TOKEN],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_pieces(texts), trainer)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(split)
    return tokenizer.to_str(pretty=True).encode()


def _pieces(texts: Iterable[str]) -> Iterator[str]:
    for text in texts:
        for start in range(0, len(text), PIECE_CHARACTERS):
            yield text[start : start + PIECE_CHARACTERS]


def _check_any_text(data: bytes, source: str) -> None:
    """Some tokenizers fail at characters that are not in their vocabulary, or leave them out."""
    tokenizer = Tokenizer.from_str(without_added_tokens(data))
    for character in ("a", "é", "漢", "😀"):
        try:
            ids = tokenizer.encode(character, add_special_tokens=False).ids
        except Exception as error:  # the library raises plain Exception
            raise SourceError(
                f"{source} cannot encode {character!a} ({error}): take a tokenizer with a token for what it does not "
                "know, or a byte-level one"
            ) from error
        if not ids:
            raise SourceError(f"{source} gives no token for {character!a}: take a byte-level tokenizer")


def describe(data: bytes, config: TokenizerConfig) -> TokenizerInfo:
    """Check a tokenizer against its configuration.

    Raises SourceError where it is none or has no ids for some text, ConfigError naming the key that does not fit it.
    """
    source = storage.redact(config.source)
    vocabulary = parse(data, source).get_vocab(with_added_tokens=True)
    end_id = vocabulary.get(config.end_token)
    if end_id is None:
        raise ConfigError(
            f"tokenizer.end_token = {config.end_token!r} is not a token of {source}; set it to the token that "
            "ends a text there"
        )
    _check_any_text(data, source)
    size = max(vocabulary.values()) + 1
    needed = (size - 1).bit_length()
    num_bits = config.num_bits or needed
    if num_bits < needed:
        raise ConfigError(f"tokenizer.num_bits = {num_bits} is too small for {size} ids: at least {needed} are needed")
    return TokenizerInfo(
        sha256=hashlib.sha256(data).hexdigest(),
        vocab_size=size,
        num_bits=num_bits,
        end_id=end_id,
        pad_id=vocabulary.get(PAD_TOKEN, end_id),
        end_token=config.end_token,
    )
