"""From prompts to what a model writes: a model loaded once, batches that finish in any order, one file in row order.

The noise of an example or a position depends only on its row, so that neither the order nor the size of the batches nor
the number of workers changes what is written.
"""

import io
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch

from bitlm import storage
from bitlm.artifacts.store import Store
from bitlm.config import EvaluateConfig
from bitlm.data.shards.tokenizer import INFO_FILE, TOKENIZER_FILE, TextTokenizer
from bitlm.errors import ArtifactError
from bitlm.evaluate.continuations import BLOCK, example_ids, random_sampling, until_end
from bitlm.evaluate.measures import MEASURES
from bitlm.generation import GenerateOutput, Sampling
from bitlm.model import BitLMForCausalLM

SCHEMA = pa.schema(
    [
        pa.field("row", pa.int64(), nullable=False),  # of the split
        pa.field("id", pa.string(), nullable=False),
        pa.field("prompt_tokens", pa.int32()),  # null for a system without a model
        pa.field("text", pa.string(), nullable=False),
        pa.field("reference", pa.string(), nullable=False),
        pa.field("steps", pa.int32(), nullable=False),  # calls of the output head
        pa.field("saved", pa.int32()),  # calls that a threshold saved; null without a model
        pa.field("new_tokens", pa.int32()),  # with the end token; null for a system without a model
        pa.field("blocks", pa.int32()),  # backbone passes, one for each block; null for a system without a model
    ]
)
"""What a system wrote. ``predictions.parquet`` also has the F1 ×100 of each row, a column for each ROUGE measure."""
COSTS = "steps", "saved", "new_tokens", "blocks"
Prediction = dict[str, Any]
"""One row of ``SCHEMA``."""
TEXTS = pa.schema([field for field in SCHEMA if field.name not in ("id", "reference")])
"""What a model adds to its examples."""
BLOCKS = pa.schema(
    [
        pa.field("row", pa.int64(), nullable=False),  # of the positions
        pa.field("first", BLOCK, nullable=False),
        pa.field("second", BLOCK, nullable=False),
    ]
)
"""Two samples of what follows each position."""
PARTS = {"texts": TEXTS, "blocks": BLOCKS}
"""What a model writes, by kind."""


def load_model(root: str, model: str) -> tuple[BitLMForCausalLM, TextTokenizer]:
    """A trained model, ready to generate, and its tokenizer. ``model`` is the id of an artifact below ``root``, or a
    local folder that holds both.

    Raises ArtifactError, naming artifact and file, if one is missing or not what its record says, and ConfigError for a
    configuration that describes no model.
    """
    if Path(model, "config.json").is_file():
        for name in (TOKENIZER_FILE, INFO_FILE):
            if not Path(model, name).is_file():
                raise ArtifactError(f"{model}: {name} is missing; give a folder that holds a model and its tokenizer")
        return _load_folder(model)
    store = Store(root)
    try:
        record = store.load(model)
    except ArtifactError as error:
        if not model or not Path(model).exists():
            raise
        raise ArtifactError(
            f"{model}: config.json is missing; give a folder that holds a model and its tokenizer, or an artifact's id"
        ) from error
    with store.local_folder(record, "model") as folder:
        return _load_folder(folder)


def _load_folder(folder: str) -> tuple[BitLMForCausalLM, TextTokenizer]:
    model, tokenizer = BitLMForCausalLM.load(folder).eval(), TextTokenizer.load(folder)
    if model.config.vocab_size != tokenizer.info.vocab_size:
        raise ArtifactError(
            f"{folder}: the tokenizer has {tokenizer.info.vocab_size} tokens and the model {model.config.vocab_size}: "
            "they do not belong together"
        )
    return model, tokenizer


class Predictor:
    """A trained model with its tokenizer, from verified files."""

    def __init__(
        self, root: str, model_id: str, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
    ) -> None:
        """Raises as ``load_model``."""
        model, self._tokenizer = load_model(root, model_id)
        self._model = model.to(device, dtype)

    def encode(self, text: str) -> list[int]:
        return self._tokenizer.encode(text)

    def texts(
        self, rows: Sequence[int], prompts: Sequence[Sequence[int]], max_new_tokens: int, settings: EvaluateConfig
    ) -> tuple[list[str], GenerateOutput]:
        """The text of each prompt, special tokens cut and white space trimmed (it may be empty), and what it cost."""
        sampling = Sampling.of(settings, max_new_tokens, compile=settings.execution.compile)
        output = self._model.generate(prompts, example_ids=rows, sampling=sampling)
        return [self._tokenizer.decode(ids).strip() for ids in output.ids], output

    def blocks(
        self, rows: Sequence[int], prompts: Sequence[Sequence[int]], settings: EvaluateConfig
    ) -> tuple[list[list[int]], list[list[int]]]:
        """Two samples of the 4 tokens behind each prompt, end tokens from the first one on."""
        config = self._model.config
        twice = [prompt for prompt in prompts for _ in range(2)]
        sampling = random_sampling(settings, config.head)
        ids = self._model.generate(twice, example_ids=example_ids(rows), sampling=sampling).ids
        filled = [until_end(block, config.end_token_id) for block in ids]
        return filled[::2], filled[1::2]


def batches(lengths: Sequence[int], finished: set[int], size: int) -> list[list[int]]:
    """Row numbers in batches of prompts of similar length. The longest come first, so that a batch that does not fit
    into memory fails at once.

    If whole batches are finished, the others are the same as without ``finished``.
    """
    order = sorted((row for row in range(len(lengths)) if row not in finished), key=lambda row: (-lengths[row], row))
    return [order[start : start + size] for start in range(0, len(order), size)]


def write_part(folder: str, rows: Iterable[dict[str, Any]], schema: pa.Schema) -> None:
    """Write the rows of one batch atomically. The same batch gives the same file."""
    table = pa.Table.from_pylist(list(rows), schema=schema)
    storage.write_atomic(storage.join(folder, f"{table['row'][0].as_py():09d}.parquet"), to_parquet(table))


def read_parts(folder: str, schema: pa.Schema) -> pa.Table:
    """All rows in a folder of parts, in order."""
    parts = [read(storage.join(folder, path)) for path in storage.list_files(folder) if path.endswith(".parquet")]
    return pa.concat_tables([schema.empty_table(), *parts]).combine_chunks().sort_by("row")


def with_scores(predictions: pa.Table, values: np.ndarray) -> pa.Table:
    """With the columns of ``scores_of``: values [examples, measures] as from ``rouge.score_pairs``."""
    for measure, column in zip(MEASURES, values.T, strict=True):
        predictions = predictions.append_column(measure, pa.array(column))
    return predictions


def scores_of(predictions: pa.Table) -> np.ndarray:
    """F1 ×100 of every example, [examples, measures], columns as ``MEASURES``."""
    return np.stack([predictions[measure].to_numpy() for measure in MEASURES], axis=1)


def costs(predictions: pa.Table) -> dict[str, float]:
    """What the texts of a model took: means over the examples, and per new token. Empty for a system without one."""
    if predictions["blocks"].null_count:
        return {}
    calls, saved, tokens, blocks = (pc.sum(predictions[name]).as_py() for name in COSTS)
    return {
        "mean_head_calls": calls / len(predictions),
        "mean_head_calls_saved": saved / len(predictions),
        "head_calls_per_token": calls / tokens,
        "backbone_passes_per_token": blocks / tokens,
    }


def read(url: str) -> pa.Table:
    return pq.read_table(io.BytesIO(storage.read_bytes(url)))


def to_parquet(table: pa.Table) -> bytes:
    """The same bytes for the same rows, whatever parts the table was put together from."""
    sink = io.BytesIO()
    pq.write_table(table.combine_chunks(), sink, compression="zstd")
    return sink.getvalue()
