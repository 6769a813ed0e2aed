"""What an actor of the evaluate stage runs. A module of its own, so that actors import neither Prefect nor ROUGE."""

from functools import cached_property
from typing import Any

import pyarrow as pa
import torch

from bitlm import errors
from bitlm.config import EvaluateConfig
from bitlm.devices import gpu_memory
from bitlm.errors import BitLMError
from bitlm.evaluate.predictions import SCHEMA, Predictor, write_part
from bitlm_tasks.gpu import gpu_fault


class PredictionWorker:
    """An actor of Ray Data: holds the model, writes a file for each batch and returns the number of its rows."""

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
        return Predictor(self._root, self._model_id, device)

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
        texts, output = self._predictor.texts(item["rows"], item["prompts"], self._max_new_tokens, self._settings)
        lengths = [len(prompt) for prompt in item["prompts"]]
        tokens = [len(ids) + ended for ids, ended in zip(output.ids, output.ended, strict=True)]
        about = item["rows"], item["ids"], lengths, texts, item["references"]
        columns = *about, output.calls, output.saved, tokens, output.blocks
        write_part(self._parts, [dict(zip(SCHEMA.names, line, strict=True)) for line in zip(*columns, strict=True)])
