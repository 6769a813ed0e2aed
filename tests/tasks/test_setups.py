"""What the trainings of both heads start from and read, as the steps of one configuration say."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from made import draft
from made_tokens import make_tokens

from bitlm import storage
from bitlm.artifacts.record import Record
from bitlm.artifacts.store import Store
from bitlm.batch import Batch
from bitlm.config import TokenizerConfig, configure
from bitlm.data.shards import tokenizer as tokenizers
from bitlm.model import BitLMForCausalLM
from bitlm.steps import steps
from bitlm.train.loop import Folders, Setup
from bitlm_tasks import pretrain
from bitlm_tasks.run import Run

TRAINED, BATCH = 3, 4  # steps of every training, sequences of each
CONFIG = configure(
    "tiny",
    [
        "pretrain.init_from=lm",
        "model.tie_embeddings=false",
        *(f"model.{key}" for key in ("hidden_size=32", "num_layers=1", "num_heads=2", "num_kv_heads=1", "ffn_size=48")),
        *(f"pretrain.{key}" for key in ("sequence_length=16", f"batch_size={BATCH}", f"steps={TRAINED}")),
    ],
)
KEYS = "pretrain/tiny-lm-start", "pretrain/tiny-lm", "pretrain/tiny-diffusion"
DOCUMENTS = [[list(range(2, 250)) * 2]]  # one shard of 31 sequences


def _commit(store: Store, stage: str, name: str, inputs: dict[str, Record], files: dict[str, bytes]) -> Record:
    of = draft(stage, name, inputs=inputs)
    work = store.begin(stage, name, of.fingerprint)
    for path, data in files.items():
        storage.write_atomic(storage.join(work.out, path), data)
    return store.commit(work, of)


@pytest.fixture
def prepared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Setup]:
    """By step, what its task sends to the workers; the start is made of random weights."""
    store = Store(str(tmp_path / "root"))
    data = tokenizers.train(["return the value of an item " * 9], TokenizerConfig(vocab_size=260))
    info = tokenizers.describe(data, TokenizerConfig(vocab_size=260))
    files = {"tokenizer.json": data, "tokenizer_info.json": info.model_dump_json().encode()}
    tokenizer = _commit(store, "tokenizer", "tiny", {}, files)
    tokens = make_tokens(store, DOCUMENTS, DOCUMENTS, num_bits=info.num_bits, inputs={"tokenizer": tokenizer})
    given = {"tokens": tokens, "tokenizer": tokenizer}
    found: dict[str, Setup] = {}
    by_key = {step.key: step for step in steps(CONFIG)}
    for key in KEYS:
        step = by_key[key]
        inputs = {role: given[role] for role in step.inputs}
        monkeypatch.setattr(
            pretrain, "fit", lambda prepare, *_, key=key: found.update({key: prepare(Folders("", str(tmp_path)))}) or {}
        )
        pretrain.build(replace(step, inputs=inputs), Run(store, CONFIG), SimpleNamespace())
        if key == KEYS[0]:
            folder = _random(found[key].initial_model(), tmp_path / "start")
            parts = {f"model/{path.name}": path.read_bytes() for path in folder.iterdir()}
            given["init"] = _commit(store, "pretrain", "tiny-lm-start", {"tokenizer": tokenizer}, parts)
    return found


def _random(model: BitLMForCausalLM, folder: Path) -> Path:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape))
    model.save_pretrained(folder)
    return folder


def _read(setup: Setup) -> list[Batch]:
    return [setup.batches.train(range(step * BATCH, (step + 1) * BATCH)) for step in range(TRAINED)]


def test_both_heads_go_on_with_the_same_batches_which_the_start_has_not_seen(prepared: dict[str, Setup]) -> None:
    start, lm, diffusion = (_read(prepared[key]) for key in KEYS)
    for ours, theirs in zip(lm, diffusion, strict=True):
        assert ours.input_ids.equal(theirs.input_ids)
        assert (ours.indices, ours.epochs) == (theirs.indices, theirs.epochs)
    seen, new = ([index for batch in batches for index in batch.indices] for batches in (start, lm))
    assert len({*seen, *new}) == 2 * TRAINED * BATCH  # within one epoch, so none comes twice
    following = prepared[KEYS[0]].batches.train(range(TRAINED * BATCH, 2 * TRAINED * BATCH))
    assert following.indices == new


def test_both_heads_go_on_from_the_weights_of_the_start(prepared: dict[str, Setup], tmp_path: Path) -> None:
    start = BitLMForCausalLM.load(tmp_path / "start").state_dict()
    lm, diffusion = (prepared[key].initial_model().state_dict() for key in KEYS[1:])
    assert lm.keys() == start.keys()
    assert {"head.output.weight", "start_block"} < start.keys()
    assert all(torch.equal(lm[name], start[name]) for name in start)
    backbone = [name for name in start if name.startswith("model.")]
    assert all(torch.equal(diffusion[name], start[name]) for name in backbone)
