"""What an actor of the evaluate stage runs. A module of its own, so that actors import neither Prefect nor ROUGE."""

from functools import cached_property
from typing import Any

import pyarrow as pa
import torch

from bitlm import errors, storage
from bitlm.config import EvaluateConfig
from bitlm.devices import gpu_memory
from bitlm.errors import BitLMError
from bitlm.evaluate.predictions import PARTS, Predictor, write_part
from bitlm_tasks.gpu import gpu_fault


class PredictionWorker:
    """An actor of Ray Data: holds the model, writes a file for each batch and returns the number of its rows.

    A batch is of ``texts`` or of ``blocks``, its ``kind``, and goes to the folder of this name below ``parts``.
    """

    def __init__(self, root: str, model_id: str, parts: str, max_new_tokens: int, settings: EvaluateConfig) -> None:
        self._root, self._model_id, self._parts = root, model_id, parts
        self._max_new_tokens, self._settings = max_new_tokens, settings

    @cached_property
    def _predictor(self) -> Predictor:
        """Loaded with the first batch, because Ray reduces an exception in an actor's constructor to its text."""
        execution = self._settings.execution
        torch.set_num_threads(execution.cpus_per_actor)
        device = torch.device("cuda" if execution.use_gpu else "cpu")
        fault = gpu_fault("evaluate", device) if execution.use_gpu else None
        if fault is not None:
            raise fault
        return Predictor(self._root, self._model_id, device, getattr(torch, self._settings.precision))

    def __call__(self, block: pa.Table) -> pa.Table:
        """A BitLMError is returned as a row, because Ray would reduce an exception to its text."""
        items = block.to_pylist()
        try:
            with gpu_memory("lower evaluate.execution.batch_size"):
                for item in items:
                    self._write(item)
        except BitLMError as error:
            name = next(base.__name__ for base in type(error).__mro__ if base.__module__ == errors.__name__)
            return pa.table({"count": [0], "error_type": [name], "error": [str(error)]})
        return pa.table({"count": [sum(len(item["rows"]) for item in items)], "error_type": [""], "error": [""]})

    def _write(self, item: dict[str, Any]) -> None:
        kind = item["kind"]
        make = {"texts": self._texts, "blocks": self._blocks}[kind]
        columns = make(item["rows"], item["prompts"])
        lines = [dict(zip(PARTS[kind].names, line, strict=True)) for line in zip(*columns, strict=True)]
        write_part(storage.join(self._parts, kind), lines, PARTS[kind])

    def _texts(self, rows: list[int], prompts: list[list[int]]) -> tuple[list, ...]:
        texts, output = self._predictor.texts(rows, prompts, self._max_new_tokens, self._settings)
        tokens = [len(ids) + ended for ids, ended in zip(output.ids, output.ended, strict=True)]
        about = rows, [len(prompt) for prompt in prompts], texts
        return *about, output.calls, output.saved, tokens, output.blocks

    def _blocks(self, rows: list[int], prompts: list[list[int]]) -> tuple[list, ...]:
        return rows, *self._predictor.blocks(rows, prompts, self._settings)
