import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Regex, Tokenizer, models, pre_tokenizers, trainers

from bitlm.config import TokenizerConfig
from bitlm.data.shards import tokenizer as module
from bitlm.data.shards.tokenizer import INFO_FILE, TOKENIZER_FILE, TextTokenizer, describe, parse, train
from bitlm.errors import BitLMError, ConfigError, SourceError

TEXTS = ["Return the value of the item, or none of them.", "The item's name: 12 letters at most.\n\n  indented"] * 20
LITERALS = ["<|endoftext|>", "<think>", "</think>", "<|im_start|>system", "<|pad|>", "a <tool_call> b"]


@pytest.fixture(scope="module")
def trained() -> TextTokenizer:
    config = TokenizerConfig(vocab_size=300)
    data = train(TEXTS, config)
    return TextTokenizer(data, describe(data, config))


@pytest.fixture(scope="module")
def qwen3(samples: Path) -> tuple[TextTokenizer, Tokenizer]:
    path = samples / "qwen3" / "tokenizer.json"
    info = describe(path.read_bytes(), TokenizerConfig(source=str(path)))
    return TextTokenizer(path.read_bytes(), info), Tokenizer.from_file(str(path))


def test_training_gives_the_same_bytes_again() -> None:
    config = TokenizerConfig(vocab_size=300)
    assert train(TEXTS, config) == train(iter(TEXTS), config)


def test_ordinary_text_gives_the_merges_of_the_library() -> None:
    """Nothing that bounds what the library gets touches words of up to ``WORD_BYTES``, or is left in the tokenizer."""
    texts = [*TEXTS, "é" * (module.WORD_BYTES // 2), "-" * module.WORD_BYTES]
    library = Tokenizer(models.BPE())
    split = pre_tokenizers.Split(Regex(module.SPLIT), behavior="isolated")
    library.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(False, use_regex=False)])
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    special = ["<|endoftext|>", module.PAD_TOKEN]
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=special, initial_alphabet=alphabet)
    library.train_from_iterator(texts, trainer)
    expected, found = (json.loads(data) for data in (library.to_str(), train(texts, TokenizerConfig(vocab_size=400))))
    assert found["model"] == expected["model"]
    assert found["pre_tokenizer"] == expected["pre_tokenizer"]


@pytest.mark.parametrize("letter", ["a", " ", "\n", "!", "漢", "😀", "\u0301"])
def test_a_word_of_any_length_is_learned_from(letter: str) -> None:
    """The library alone takes minutes to hours for each of these words."""
    data = train([letter * 1_000_000, *TEXTS], TokenizerConfig(vocab_size=300))
    assert len(TextTokenizer(data, describe(data, TokenizerConfig())).encode(letter * 64)) == 1


def test_long_words_are_cut_and_long_texts_read_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    config = TokenizerConfig(vocab_size=300)
    expected = train(["abcdefgh", "ijklmnop", "ij"] * 10, config)
    monkeypatch.setattr(module, "WORD_BYTES", 8)
    assert train(["abcdefghijklmnopij"] * 10, config) == expected
    monkeypatch.setattr(module, "PIECE_CHARACTERS", 4)
    assert train(["abcdefghij"] * 10, config) == train(["abcd", "efgh", "ij"] * 10, config)


def test_special_tokens_and_size(trained: TextTokenizer) -> None:
    info = trained.info
    assert (info.vocab_size, info.num_bits, info.end_id, info.pad_id) == (300, 9, 0, 1)
    assert trained.encode("Return the value") != []
    assert len(trained.encode("the value of the")) < len("the value of the") / 2


@given(st.text())
def test_any_text_comes_back(text: str) -> None:
    config = TokenizerConfig(vocab_size=300)
    tokenizer = _cached(config)
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert not {tokenizer.info.end_id, tokenizer.info.pad_id} & set(ids)


def _cached(config: TokenizerConfig, made: list[TextTokenizer] = []) -> TextTokenizer:  # noqa: B006
    if not made:
        data = train(TEXTS, config)
        made.append(TextTokenizer(data, describe(data, config)))
    return made[0]


LONG = ["a" * 30_000, "word " * 9000, " " * 300_000, "漢" * 9000, "e\u0301\u0323" * 9000, "😀" * 9000, "1\n" * 9000]


@pytest.mark.parametrize("count", [1, 7, 500])
@pytest.mark.parametrize("text", [*TEXTS[:2], "", *LONG, "".join(LONG)], ids=lambda text: ascii(text[:3]))
def test_the_start_of_a_text_has_the_ids_of_the_whole(
    text: str, count: int, trained: TextTokenizer, request: pytest.FixtureRequest
) -> None:
    for tokenizer in (trained, request.getfixturevalue("qwen3")[0]):
        assert tokenizer.encode_start(text, count) == tokenizer.encode(text)[:count]


def test_the_start_of_a_long_text_is_encoded_alone(trained: TextTokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    encoded = []
    encode = trained.encode
    monkeypatch.setattr(trained, "encode", lambda text: encoded.append(text) or encode(text))
    assert len(trained.encode_start("a" * 10**8, 100)) == 100
    assert sum(map(len, encoded)) < 10**5


@pytest.mark.parametrize("text", LITERALS)
def test_literal_special_tokens_stay_text(text: str, trained: TextTokenizer) -> None:
    ids = trained.encode(text)
    assert trained.decode(ids) == text
    assert min(ids) >= 2


@pytest.mark.parametrize("text", LITERALS)
def test_literal_special_tokens_stay_text_in_qwen3(text: str, qwen3: tuple[TextTokenizer, Tokenizer]) -> None:
    tokenizer, reference = qwen3
    ids = tokenizer.encode(text)
    assert max(ids) < 151_643, "an added token"
    assert reference.decode(ids) == text
    if text != "<|pad|>":
        assert max(reference.encode(text).ids) >= 151_643, "the text holds no added token"


def test_qwen3_ids_equal_the_library_on_real_text(qwen3: tuple[TextTokenizer, Tokenizer], samples: Path) -> None:
    import pyarrow.parquet as pq

    tokenizer, reference = qwen3
    texts = pq.read_table(samples / "fineweb" / "first_rows.parquet")["text"].to_pylist()
    assert tokenizer.encode_batch(texts) == [encoding.ids for encoding in reference.encode_batch(texts)]
    assert tokenizer.info.model_dump(exclude={"sha256"}) == {
        "vocab_size": 151_669,
        "num_bits": 18,
        "end_id": 151_643,
        "pad_id": 151_643,
        "end_token": "<|endoftext|>",
    }


def test_too_few_bits_and_unknown_tokens_name_the_key(trained: TextTokenizer) -> None:
    config = TokenizerConfig(vocab_size=300)
    data = train(TEXTS, config)
    with pytest.raises(ConfigError, match=r"tokenizer\.num_bits = 8 is too small for 300 ids: at least 9"):
        describe(data, TokenizerConfig(source="x.json", num_bits=8))
    assert describe(data, TokenizerConfig(source="x.json", num_bits=12)).num_bits == 12
    with pytest.raises(ConfigError, match=r"tokenizer\.end_token = '<end>' is not a token of x\.json"):
        describe(data, TokenizerConfig(source="x.json", end_token="<end>"))


@pytest.mark.parametrize("data", [b"", b"{}", b"\xff\xfe", json.dumps({"model": 3}).encode()])
def test_what_is_no_tokenizer_is_refused(data: bytes) -> None:
    with pytest.raises(SourceError, match=r"x\.json is not a tokenizer\.json"):
        parse(data, "x.json")


END = "<|endoftext|>"


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (models.WordLevel({END: 0, "a": 1}, unk_token="<unk>"), r"cannot encode '\\xe9' \(WordLevel error: Missing"),
        (models.WordPiece({END: 0, "a": 1}, unk_token="[UNK]"), r"cannot encode '\\xe9' \(WordPiece error: Missing"),
        (models.Unigram([(END, 0.0), ("a", -1.0)], None, False), r"cannot encode '\\xe9' \(Encountered an unknown"),
        (models.BPE({END: 0, "a": 1}, []), r"gives no token for '\\xe9': take a byte-level"),
        (
            models.BPE(),
            r"tokenizer.end_token = .* is not a token of x.json; set it to the token that ends",
        ),
    ],
)
def test_a_tokenizer_without_ids_for_some_text_is_refused(model: models.Model, reason: str) -> None:
    with pytest.raises(BitLMError, match=reason):
        describe(Tokenizer(model).to_str().encode(), TokenizerConfig(source="x.json"))


def test_a_tokenizer_that_knows_no_character_but_has_a_token_for_it_is_taken() -> None:
    data = Tokenizer(models.WordLevel({END: 0, "a": 1, "<unk>": 2}, unk_token="<unk>")).to_str().encode()
    assert describe(data, TokenizerConfig(source="x.json")).vocab_size == 3


def test_a_folder_loads_as_what_was_written(trained: TextTokenizer, tmp_path: Path) -> None:
    (tmp_path / TOKENIZER_FILE).write_bytes(train(TEXTS, TokenizerConfig(vocab_size=300)))
    (tmp_path / INFO_FILE).write_text(trained.info.model_dump_json())
    loaded = TextTokenizer.load(tmp_path)
    assert loaded.info == trained.info
    assert loaded.encode_batch(TEXTS) == trained.encode_batch(TEXTS)
