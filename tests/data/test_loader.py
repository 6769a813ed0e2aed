import pytest
import torch
from made import add_document

from bitlm.config import PromptConfig, TokenizerConfig
from bitlm.data.loader import FinetuneBatches, PretrainBatches
from bitlm.data.prompts import encode_prompts, encode_summaries, row_length
from bitlm.data.shards import Shard, ShardWriter
from bitlm.data.summaries import Example
from bitlm.data.tokenizer import TextTokenizer, describe, train
from bitlm.errors import ConfigError

EXAMPLES = [
    Example(f"Document {i}. " + "word of it " * (i % 13), f"Summary number {i} " * (1 + i % 7), str(i))
    for i in range(23)
]
PROMPT = PromptConfig(max_prompt_tokens=30, max_summary_tokens=16, separator=" => ")


@pytest.fixture(scope="module")
def tokenizer() -> TextTokenizer:
    config = TokenizerConfig(vocab_size=320)
    data = train([example.document for example in EXAMPLES], config)
    return TextTokenizer(data, describe(data, config))


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder, found = tmp_path_factory.mktemp("shards"), []
    for number, tokens in enumerate([50, 7, 90]):
        writer = ShardWriter(12, 0)
        add_document(writer, "d", 0, range(1 + 100 * number, 1 + 100 * number + tokens))
        found.append(str(folder / f"{number}.arrow"))
        writer.write(found[-1], str(folder / f"{number}.docs"))
    return found


def test_pretraining_rows_are_the_sequences_of_the_shards(paths: list[str]) -> None:
    batches = PretrainBatches(paths, paths[:1], 16, seed=3, window_shards=2, bytes_per_token=4.5)
    batch = batches.train(range(20))
    assert batch.input_ids.shape == (20, 16)
    assert batch.input_ids.dtype == torch.int64
    assert batch.attention_mask is None
    assert batch.loss_blocks is None
    plain = [Shard(path).ids(i, 16).tolist() for path in paths for i in range(0, Shard(path).tokens - 15, 16)]
    assert batch.input_ids.tolist() == [plain[i] for i in batch.indices]
    assert batch.epochs == [p // len(plain) for p in range(20)]
    assert batches.validation_count == 3
    assert batches.validation([0, 2]).input_ids.tolist() == [plain[0], plain[2]]
    assert batches.unused_tokens == sum(Shard(path).tokens for path in paths) - 16 * len(plain)


def test_ranks_together_see_the_batch(paths: list[str]) -> None:
    whole = PretrainBatches(paths, [], 8, 0, 2).train(range(12, 24))
    parts = [PretrainBatches(paths, [], 8, 0, 2).train(range(12 + 4 * rank, 16 + 4 * rank)) for rank in range(3)]
    assert torch.cat([part.input_ids for part in parts]).equal(whole.input_ids)
    assert [index for part in parts for index in part.indices] == whole.indices


def test_sequences_longer_than_every_shard_are_refused(paths: list[str]) -> None:
    with pytest.raises(ConfigError, match=r"pretrain\.sequence_length = 128 is more than any of the 3"):
        PretrainBatches(paths, [], 128, 0, 2)


@pytest.mark.parametrize("m", [1, 4, 8])
def test_finetuning_rows(tokenizer: TextTokenizer, m: int) -> None:
    batches = FinetuneBatches(EXAMPLES, EXAMPLES[:5], tokenizer, PROMPT, m, seed=1)
    batch = batches.train(range(30))
    length = row_length(PROMPT, m)
    assert batch.input_ids.shape == batch.attention_mask.shape == (30, length)
    assert batch.loss_blocks.shape == (30, length // m)
    assert length % m == 0
    separator = tokenizer.encode(PROMPT.separator)
    end = tokenizer.info.end_id
    assert sorted(batch.indices[:23]) == list(range(23))
    for row, index in enumerate(batch.indices):
        ids, mask = batch.input_ids[row].tolist(), batch.attention_mask[row].tolist()
        padding = mask.index(1)
        assert mask == [0] * padding + [1] * (length - padding)
        assert set(ids[:padding]) <= {tokenizer.info.pad_id}
        loss = batch.loss_blocks[row].repeat_interleave(m).tolist()
        start = loss.index(True)
        assert loss == [False] * start + [True] * (length - start)
        prompt, summary = ids[padding:start], ids[start:]
        assert prompt[-len(separator) :] == separator
        document = tokenizer.encode(EXAMPLES[index].document)
        assert prompt[: -len(separator)] == document[: PROMPT.max_prompt_tokens - len(separator)]
        text = tokenizer.encode(EXAMPLES[index].summary)[: PROMPT.max_summary_tokens - 1]
        assert summary[: len(text)] == text
        assert set(summary[len(text) :]) == {end}
        assert 1 <= len(summary) - len(text) <= m


def test_a_row_does_not_depend_on_its_batch(tokenizer: TextTokenizer) -> None:
    batches = FinetuneBatches(EXAMPLES, EXAMPLES, tokenizer, PROMPT, 4, seed=1)
    whole = batches.train(range(16))
    for position in range(16):
        alone = batches.train([position])
        assert alone.input_ids.equal(whole.input_ids[position : position + 1])
        assert alone.loss_blocks.equal(whole.loss_blocks[position : position + 1])
        assert (alone.indices, alone.epochs) == (whole.indices[position : position + 1], [0])
    assert batches.validation([3]).indices == [3]


def test_prompts_for_generation_are_those_of_training(tokenizer: TextTokenizer) -> None:
    batch = FinetuneBatches(EXAMPLES, EXAMPLES, tokenizer, PROMPT, 4, seed=1).validation(range(5))
    for row, prompt in enumerate(encode_prompts(tokenizer, [example.document for example in EXAMPLES[:5]], PROMPT)):
        assert len(prompt) <= PROMPT.max_prompt_tokens
        seen = batch.input_ids[row][batch.attention_mask[row].bool()].tolist()
        assert seen[: len(prompt)] == prompt
        assert seen[len(prompt) :] == encode_summaries(tokenizer, [EXAMPLES[row].summary], PROMPT, 4)[0]


def test_a_separator_without_room_is_refused(tokenizer: TextTokenizer) -> None:
    tight = PROMPT.model_copy(update={"max_prompt_tokens": 2})
    with pytest.raises(ConfigError, match=r"prompt\.max_prompt_tokens = 2 leaves no room"):
        encode_prompts(tokenizer, ["text"], tight)
