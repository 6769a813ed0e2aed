import re
import shutil
from collections import Counter
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import torch
from made_tokens import counting, make_tokens, stream
from s3 import S3, _moto, s3  # noqa: F401

from bitlm import storage
from bitlm.artifacts import Record, Store
from bitlm.artifacts.store import cache_name
from bitlm.config import PretrainConfig, PromptConfig, TokenizerConfig
from bitlm.data.reading.batches import FinetuneBatches, PretrainBatches, open_pretrain
from bitlm.data.shards.tokenizer import TextTokenizer, describe, train
from bitlm.data.summaries.examples import Example
from bitlm.data.summaries.prompts import SummaryFormat, encode_prompts, encode_summaries
from bitlm.errors import ArtifactError, ConfigError
from bitlm.storage.cache import open_cache

EXAMPLES = [
    Example(f"Document {i}. " + "word of it " * (i % 13), f"Document {i} of it " * (i % 7), str(i)) for i in range(23)
]
PROMPT = PromptConfig(max_prompt_tokens=30, max_summary_tokens=16, separator=" => ")


@pytest.fixture(scope="module")
def tokenizer() -> TextTokenizer:
    config = TokenizerConfig(vocab_size=320)
    data = train([example.document for example in EXAMPLES], config)
    return TextTokenizer(data, describe(data, config))


SHARDS = counting([50, 7, 90, 40, 33, 3, 64])
EPOCH = 18  # sequences of 16 tokens in these


def pretrain(store: Store, record: Record, length: int = 16, window: int = 2, **execution: int) -> PretrainBatches:
    config = PretrainConfig(sequence_length=length, seed=3, window_shards=window, execution=execution)
    return open_pretrain(store, record, config)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Store, Record]:
    store = Store(str(tmp_path_factory.mktemp("root")))
    return store, make_tokens(store, SHARDS, SHARDS[:1])


def test_pretraining_rows_are_the_sequences_of_the_shards(made: tuple[Store, Record]) -> None:
    batches = pretrain(*made)
    plain = [stream(documents)[i : i + 16] for documents in SHARDS for i in range(0, len(stream(documents)) - 15, 16)]
    batch = batches.train(range(2 * len(plain)))
    assert batch.input_ids.shape == (2 * len(plain), 16)
    assert batch.input_ids.dtype == torch.int64
    assert batch.attention_mask is None
    assert batch.loss_tokens is None
    assert batch.input_ids.tolist() == [plain[i] for i in batch.indices]
    assert batch.epochs == [0] * len(plain) + [1] * len(plain)
    for epoch in (batch.indices[: len(plain)], batch.indices[len(plain) :]):
        assert sorted(epoch) == list(range(len(plain)))
    assert batches.validation_count == 3
    assert batches.validation([0, 2]).input_ids.tolist() == [plain[0], plain[2]]
    assert batches.unused_tokens == sum(len(stream(documents)) for documents in SHARDS) - 16 * len(plain)
    assert batches.bytes_per_token == 4.0


@pytest.mark.parametrize("readers", [1, 2, 3, 8])
def test_any_number_of_readers_sees_the_batches_from_any_step(made: tuple[Store, Record], readers: int) -> None:
    """Each reader on its own begins at step 2; a batch is more than an epoch."""
    batch, steps, share = 24, range(2, 5), 24 // readers
    undisturbed = pretrain(*made)
    whole = [undisturbed.train(range(step * batch, (step + 1) * batch)) for step in range(5)][2:]
    parts = [
        [alone.train(range(start, start + share)) for start in (step * batch + reader * share for step in steps)]
        for reader in range(readers)
        for alone in [pretrain(*made)]
    ]
    for number, step in enumerate(whole):
        assert torch.cat([part[number].input_ids for part in parts]).equal(step.input_ids)
        assert [index for part in parts for index in part[number].indices] == step.indices
        assert [epoch for part in parts for epoch in part[number].epochs] == step.epochs
    assert whole[-1].epochs[-1] == (5 * batch - 1) // EPOCH


def test_a_first_position_shifts_the_training_order_alone(made: tuple[Store, Record]) -> None:
    config = PretrainConfig(sequence_length=16, seed=3, window_shards=2)
    whole, later = open_pretrain(*made, config), open_pretrain(*made, config, first_position=13)
    expected, batch = whole.train(range(13, 13 + 2 * EPOCH)), later.train(range(2 * EPOCH))
    assert batch.input_ids.equal(expected.input_ids)
    assert (batch.indices, batch.epochs) == (expected.indices, expected.epochs)
    assert later.validation([0, 1]).input_ids.equal(whole.validation([0, 1]).input_ids)


def test_sequences_longer_than_every_shard_are_refused(made: tuple[Store, Record]) -> None:
    with pytest.raises(ConfigError, match=r"pretrain\.sequence_length = 128 is more than any of the 7"):
        pretrain(*made, length=128)


def test_any_flipped_byte_is_refused_by_the_name_of_its_file(made: tuple[Store, Record], tmp_path: Path) -> None:
    """In shards, ``tokens.json`` and the record, 200 places in all; the undamaged copy is read before."""
    shutil.copytree(made[0].root, tmp_path / "root")
    store, artifact = Store(str(tmp_path / "root")), made[1].id

    def read() -> None:
        record = store.load(artifact)
        batches = pretrain(store, record, length=8)
        with closing(batches):
            batches.train(range(41))  # all there are
            batches.validation(range(batches.validation_count))

    read()
    files = ["artifact.json", "tokens.json", *(entry.path for entry in made[1].files if ".arrow" in entry.path)]
    random = np.random.default_rng(0)
    for turn in range(200):
        path = tmp_path / "root" / artifact / files[turn % len(files)]
        data = path.read_bytes()
        place = int(random.integers(len(data)))
        path.write_bytes(data[:place] + bytes([data[place] ^ 1 << turn % 8]) + data[place + 1 :])
        with pytest.raises(ArtifactError, match=re.escape(files[turn % len(files)])):
            read()
        path.write_bytes(data)
    read()


def test_remote_shards_are_read_through_a_bounded_cache(
    s3: S3,  # noqa: F811
    made: tuple[Store, Record],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    store = Store(s3.root)
    record = make_tokens(store, SHARDS, SHARDS[:1])
    sizes = sorted(record.file(f"shards/train/{n:05d}.arrow").bytes for n in range(len(SHARDS)))
    limit = sum(sizes[-2:]) + record.file("shards/validation/00000.arrow").bytes
    here, there = pretrain(*made), pretrain(store, record, cache_bytes=limit)
    folder = Path(open_cache().folder, cache_name(record, "shards"))
    for start in range(0, 3 * EPOCH, 4):
        batch = there.train(range(start, start + 4))
        assert batch.input_ids.equal(here.train(range(start, start + 4)).input_ids)
        assert there.validation([1]).input_ids.equal(here.validation([1]).input_ids)
        assert sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) <= limit
    fetched = Counter(path for method, path in s3.requests if method == "GET" and "shards/train" in path)
    assert max(fetched.values()) >= 3, "each epoch needs what earlier windows pushed out"
    there.close()
    with pytest.raises(ConfigError, match=rf"cache_bytes = {limit - 1:,} is too little"):
        pretrain(store, record, cache_bytes=limit - 1)
    monkeypatch.setenv("BITLM_CACHE_BYTES", str(limit - 1))
    with pytest.raises(ConfigError, match=rf"BITLM_CACHE_BYTES = {limit - 1:,} is too little"):
        pretrain(store, record)


def test_a_remote_shard_that_is_not_the_recorded_one_is_refused(s3: S3) -> None:  # noqa: F811
    store = Store(s3.root)
    record = make_tokens(store, SHARDS, SHARDS[:1])
    url = store.url(record.id, "shards/train/00002.arrow")
    data = storage.read_bytes(url)
    for damaged in (data[:-1], data[:70] + b"!" + data[71:]):
        storage.write_atomic(url, damaged)
        batches = pretrain(store, record, window=7)
        with pytest.raises(ArtifactError, match=r"shards/train/00002\.arrow (has|is damaged)"):
            batches.train(range(EPOCH))
        batches.close()
    assert not list(Path(open_cache().folder, cache_name(record, "shards")).rglob("*00002*"))
    storage.write_atomic(url, data)
    assert len(pretrain(store, record).train(range(EPOCH))) == EPOCH


@pytest.mark.parametrize("m", [1, 4, 8])
def test_finetuning_rows(tokenizer: TextTokenizer, m: int) -> None:
    batches = FinetuneBatches(EXAMPLES, EXAMPLES[:5], SummaryFormat(tokenizer, PROMPT, m), seed=1)
    batch = batches.train(range(30))
    length = SummaryFormat(tokenizer, PROMPT, m).length
    assert batch.input_ids.shape == batch.attention_mask.shape == batch.loss_tokens.shape == (30, length)
    assert length % m == 0
    separator = tokenizer.encode(PROMPT.separator)
    end = tokenizer.info.end_id
    assert sorted(batch.indices[:23]) == list(range(23))
    for row, index in enumerate(batch.indices):
        ids, mask = batch.input_ids[row].tolist(), batch.attention_mask[row].tolist()
        padding = mask.index(1)
        assert mask == [0] * padding + [1] * (length - padding)
        assert set(ids[:padding]) <= {tokenizer.info.pad_id}
        loss = batch.loss_tokens[row].tolist()
        start, fill = loss.index(True), loss[::-1].index(True)
        assert loss == [False] * start + [True] * (length - start - fill) + [False] * fill
        assert start % m == 0
        assert fill < m
        prompt, summary = ids[padding:start], ids[start : length - fill]
        assert set(ids[length - fill :]) <= {end}
        assert prompt[-len(separator) :] == separator
        document = tokenizer.encode(EXAMPLES[index].document)
        assert prompt[: -len(separator)] == document[: PROMPT.max_prompt_tokens - len(separator)]
        text = tokenizer.encode(EXAMPLES[index].summary)[: PROMPT.max_summary_tokens - 1]
        assert summary == [*text, end]


def test_both_heads_take_loss_on_the_same_tokens(tokenizer: TextTokenizer) -> None:
    formats = [SummaryFormat(tokenizer, PROMPT, m) for m in (1, 4)]
    batches = [FinetuneBatches(EXAMPLES, EXAMPLES, one, seed=1).train(range(23)) for one in formats]
    lm, diffusion = (
        [ids[chosen].tolist() for ids, chosen in zip(b.input_ids, b.loss_tokens, strict=True)] for b in batches
    )
    assert lm == diffusion
    assert len({len(ids) % 4 for ids in lm}) > 2  # with several lengths of fill
    assert all(ids.count(tokenizer.info.end_id) == 1 for ids in lm)


def test_a_row_does_not_depend_on_its_batch(tokenizer: TextTokenizer) -> None:
    batches = FinetuneBatches(EXAMPLES, EXAMPLES, SummaryFormat(tokenizer, PROMPT, 4), seed=1)
    whole = batches.train(range(16))
    for position in range(16):
        alone = batches.train([position])
        assert alone.input_ids.equal(whole.input_ids[position : position + 1])
        assert alone.loss_tokens.equal(whole.loss_tokens[position : position + 1])
        assert (alone.indices, alone.epochs) == (whole.indices[position : position + 1], [0])
    assert batches.validation([3]).indices == [3]


def test_prompts_for_generation_are_those_of_training(tokenizer: TextTokenizer) -> None:
    batch = FinetuneBatches(EXAMPLES, EXAMPLES, SummaryFormat(tokenizer, PROMPT, 4), seed=1).validation(range(5))
    for row, prompt in enumerate(encode_prompts(tokenizer, [example.document for example in EXAMPLES[:5]], PROMPT)):
        assert len(prompt) <= PROMPT.max_prompt_tokens
        seen = batch.input_ids[row][batch.attention_mask[row].bool()].tolist()
        assert seen[: len(prompt)] == prompt
        summary = encode_summaries(tokenizer, [EXAMPLES[row].summary], PROMPT)[0]
        assert seen[len(prompt) :] == summary + [tokenizer.info.end_id] * (-len(summary) % 4)


def test_a_separator_without_room_is_refused(tokenizer: TextTokenizer) -> None:
    tight = PROMPT.model_copy(update={"max_prompt_tokens": 2})
    with pytest.raises(ConfigError, match=r"prompt\.max_prompt_tokens = 2 leaves no room"):
        encode_prompts(tokenizer, ["text"], tight)
