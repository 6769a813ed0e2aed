"""Small artifacts of models and of the summaries that they write."""

from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa
import torch

from bitlm import storage
from bitlm.artifacts.record import Draft, Record, fingerprint
from bitlm.artifacts.store import Store
from bitlm.data.sources.corpus import Corpus, Summaries, parquet_bytes, write_owned
from bitlm.data.summaries.examples import Example
from bitlm.model import BitLMConfig, BitLMForCausalLM


def commit(
    store: Store,
    stage: str,
    name: str,
    identity: dict[str, Any],
    inputs: dict[str, Record],
    fill: Callable[[str], None],
    metrics: dict[str, Any] | None = None,
    started: datetime | None = None,
) -> Record:
    """An artifact whose folder ``fill`` writes."""
    digest = fingerprint(stage, 1, identity, {role: record.fingerprint for role, record in inputs.items()})
    work = store.begin(stage, name, digest)
    fill(work.out)
    started = started or datetime.now(UTC)
    return store.commit(work, Draft(stage, name, digest, 1, identity, {}, inputs, metrics or {}, started))


def write(out: str, files: Mapping[str, bytes]) -> None:
    for path, data in files.items():
        storage.write_atomic(storage.join(out, path), data)


def write_corpus(out: str, examples: Sequence[Example]) -> None:
    """The files of a corpus artifact with these examples as its test split."""
    rows = pa.Table.from_pylist([example._asdict() for example in examples])
    file = write_owned(parquet_bytes(rows), out, "summaries/test.parquet", ("document", "summary", "id"))
    corpus = Corpus(
        kind="owned",
        files=(),
        text_column="text",
        id_column="id",
        validation_fraction=0.1,
        summaries=Summaries(train=(), validation=(), test=(file,), hash_split=False),
    )
    write(out, {"source.json": corpus.to_json()})


def write_model(out: str, config: BitLMConfig, beside: Mapping[str, bytes]) -> None:
    """A model whose every parameter is random, and other files in its folder."""
    torch.manual_seed(0)
    model = BitLMForCausalLM(config)
    with torch.no_grad():  # a fresh diffusion head answers 0 whatever it sees
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape))
    model.save_pretrained(storage.join(out, "model"))
    write(storage.join(out, "model"), beside)
