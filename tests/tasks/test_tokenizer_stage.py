import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bitlm.artifacts.record import Record
from bitlm.artifacts.store import Store
from bitlm.config import TokenizerConfig
from bitlm.data.shards import tokenizer, training
from bitlm.data.shards.training import TrainingText
from bitlm.errors import SourceError
from tests.tasks.data_stages import run_stages

pytestmark = pytest.mark.usefixtures("ray_session")

TEXTS = ["Return the value of the item.", "a" * 100_000, "é" * 10, "the last text"]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Store, dict[str, Record]]:
    """Corpus and tokenizer artifacts of the texts, with others that are not for training."""
    folder = tmp_path_factory.mktemp("source")
    excluded = "the text of the test split"
    rows = [*TEXTS[:2], excluded, None, excluded.upper().replace(" ", "\n"), *TEXTS[2:]]
    (folder / "text.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in rows))
    for split in ("train", "validation", "test"):
        pq.write_table(pa.table({"document": [excluded], "summary": ["s"]}), folder / f"{split}.parquet")
    settings = [f"corpus.source={folder}/*.jsonl", f"corpus.summaries={folder}/*.parquet", "tokenizer.vocab_size=300"]
    root = folder / "root"
    return Store(str(root)), run_stages(root, *settings, "corpus.validation_fraction=0.000001", last="tokenizer")


def test_the_stage_learns_from_the_train_split(made: tuple[Store, dict[str, Record]]) -> None:
    store, records = made
    expected = tokenizer.train(TEXTS, TokenizerConfig(vocab_size=300))
    assert store.read_bytes(records["tokenizer"], "tokenizer.json") == expected
    metrics = records["tokenizer"].metrics
    assert (metrics["trained_documents"], metrics["trained_characters"]) == (4, sum(map(len, TEXTS)))
    assert metrics["left_out_for_test"] == 2
    assert records["corpus"].metrics["examples_left_out_for_test"] == 2


def test_only_the_first_bytes_are_learned_from(
    made: tuple[Store, dict[str, Record]], monkeypatch: pytest.MonkeyPatch
) -> None:
    store, records = made
    text = TrainingText(store, records["corpus"])
    for limit, expected in [(10**9, TEXTS), (29, TEXTS[:1]), (30, [TEXTS[0], "a"]), (100_032, [*TEXTS[:2], "é"])]:
        monkeypatch.setattr(training, "TRAIN_BYTES", limit)
        assert list(text) == expected
    assert text.documents == 4 + 1 + 2 + 3


def test_no_text_to_learn_from_is_one_line(
    made: tuple[Store, dict[str, Record]], monkeypatch: pytest.MonkeyPatch
) -> None:
    store, records = made
    monkeypatch.setattr(training, "text_split", lambda *_: "validation")
    with pytest.raises(SourceError, match="its train split has no usable text"):
        training.train(store.root, records["corpus"], TokenizerConfig())
