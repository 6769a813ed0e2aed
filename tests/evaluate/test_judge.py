import numpy as np
import pytest
import torch
from small_models import SMALL, small_model

from bitlm.errors import ConfigError
from bitlm.evaluate.judge import judge
from bitlm.model import BitLMForCausalLM

END = SMALL["end_token_id"]
PROMPTS = [[3, 4, 5], [6], [7, 8, 9, 10, 11, 12, 13], [14, 15], [16, 17, 18]]
TEXTS = [[20, 21], [22, 23, 24, 25, 26], [], [27], []]
ENDED = [True, False, True, False, False]


@pytest.fixture(scope="module")
def model() -> BitLMForCausalLM:
    return small_model(head="lm")


@torch.no_grad()
def by_hand(model: BitLMForCausalLM, prompt: list[int], text: list[int]) -> float:
    """-log p of the text, a token at a time: the last row of the softmax behind all that comes before."""
    nats = 0.0
    for i, token in enumerate(text):
        so_far = torch.tensor([[*prompt, *text[:i], 0]])
        logits = model.token_logits(model.compute_context(so_far)[0, -1, 0])
        nats -= float(logits.double().log_softmax(-1)[token])
    return nats


@pytest.mark.parametrize("batch_size", [1, 2, 5])
def test_every_text_has_its_own_nats_whatever_its_batch(model: BitLMForCausalLM, batch_size: int) -> None:
    found = judge(model, PROMPTS, TEXTS, ENDED, batch_size)
    whole = [[*text, END] if ended else text for text, ended in zip(TEXTS, ENDED, strict=True)]
    expected = [by_hand(model, prompt, text) for prompt, text in zip(PROMPTS, whole, strict=True)]
    np.testing.assert_allclose(found.nats, expected, rtol=1e-5)
    assert found.tokens.tolist() == [3, 5, 1, 1, 0]
    assert found.nats_per_token == pytest.approx(sum(expected) / 10, rel=1e-5)


def test_what_a_model_writes_is_judged_as_it_wrote_it(model: BitLMForCausalLM) -> None:
    """Of its own greedy text every token is the likeliest one, so no other choice of a token is judged better."""
    output = model.generate(PROMPTS, max_new_tokens=6)
    own = judge(model, PROMPTS, output.ids, output.ended)
    assert (own.tokens == [len(ids) + ended for ids, ended in zip(output.ids, output.ended, strict=True)]).all()
    first = [ids[:1] or [END] for ids in output.ids]
    best = judge(model, PROMPTS, first, [False] * 5).nats
    for other in range(SMALL["vocab_size"]):
        assert (judge(model, PROMPTS, [[other]] * 5, [False] * 5).nats >= best - 1e-5).all()


def test_what_cannot_be_judged_is_refused(model: BitLMForCausalLM) -> None:
    with pytest.raises(ConfigError, match="with the LM head"):
        judge(small_model(), [[1]], [[2]], [True])
    with pytest.raises(ConfigError, match="2 prompts, 1 continuations and 1 ends"):
        judge(model, [[1], [2]], [[2]], [True])
    with pytest.raises(ConfigError, match="a prompt is empty"):
        judge(model, [[]], [[2]], [True])
    with pytest.raises(ConfigError, match="no token"):
        judge(model, [[1], [2]], [[], []], [False, False])
