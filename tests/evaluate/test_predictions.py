"""What a predictor writes for BrierLM, against the model's own probabilities."""

import numpy as np
import pytest
import torch
from small_models import small_model

from bitlm.config import EvaluateConfig
from bitlm.evaluate import brier, predictions
from bitlm.generation import GenerateOutput
from bitlm.model import BitLMForCausalLM

PROMPTS = [[3, 4, 5, 6], [7, 8], [9, 10, 11, 12, 13]]
TRUTH = [[11, 12, 13, 14], [20, 21, 22, 23], [30, 31, 32, 33]]
REPEATED = 1200


@torch.no_grad()
def next_token(model: BitLMForCausalLM, prompt: list[int]) -> np.ndarray:
    context = model.compute_context(torch.tensor([[*prompt, 0]]))[0, -1, 0]
    return model.token_logits(context).double().softmax(-1).numpy()


def closed_form(model: BitLMForCausalLM, prompt: list[int], truth: list[int]) -> list[float]:
    """2 q(y) - Σ q² of the next token, and of the next two."""
    first = next_token(model, prompt)
    both = np.stack([p * next_token(model, [*prompt, token]) for token, p in enumerate(first)])
    both[model.config.end_token_id] = 0  # what follows an end token counts as end tokens
    both[model.config.end_token_id, model.config.end_token_id] = first[model.config.end_token_id]
    return [2 * q - (all_ * all_).sum() for q, all_ in ((first[truth[0]], first), (both[truth[0], truth[1]], both))]


def test_an_lm_heads_samples_have_the_brier_scores_of_its_probabilities(monkeypatch: pytest.MonkeyPatch) -> None:
    model = small_model(head="lm")
    likeliest = [int(next_token(model, prompt).argmax()) for prompt in PROMPTS]
    truth = [[token, *row[1:]] for token, row in zip(likeliest, TRUTH, strict=True)]
    monkeypatch.setattr(predictions, "load_model", lambda root, model_id: (model, None))
    rows = len(PROMPTS) * REPEATED
    first, second = predictions.Predictor("", "").blocks(range(rows), PROMPTS * REPEATED, EvaluateConfig(seed=4))
    values = brier.terms(np.array(first), np.array(second), np.array(truth * REPEATED))[:, :2]
    expected = np.mean([closed_form(model, *pair) for pair in zip(PROMPTS, truth, strict=True)], axis=0)
    error = values.std(axis=0) / rows**0.5
    assert (np.abs(values.mean(axis=0) - expected) < 4 * error).all()
    assert expected[0] > 10 * error[0]  # so that 0, which greedy or equal samples may have, is found


def test_precision_and_compilation_are_those_of_the_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    model, asked = small_model(), []
    monkeypatch.setattr(predictions, "load_model", lambda root, model_id: (model, None))
    predictor = predictions.Predictor("", "", dtype=torch.bfloat16)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}

    def generate(prompts, example_ids, sampling):
        asked.append(sampling)
        return GenerateOutput()

    monkeypatch.setattr(model, "generate", generate)
    for compiled in (False, True):
        predictor.texts([], [], 8, EvaluateConfig(execution={"compile": compiled}))
    assert [sampling.compile for sampling in asked] == [False, True]
