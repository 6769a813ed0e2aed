import pytest

from bitlm.config import configure
from bitlm.errors import ConfigError
from bitlm.steps import STAGES, Step, select, steps


def _by_key(*assignments: str) -> dict[str, Step]:
    return {step.key: step for step in steps(configure("tiny", assignments))}


def _changed(*assignments: str) -> set[str]:
    before, after = _by_key(), _by_key(*assignments)
    return {key for key in before if before[key].fingerprint != after[key].fingerprint}


def test_inputs_come_before_their_users_and_keys_are_unique():
    seen: set[str] = set()
    for step in steps(configure("tiny")):
        assert step.stage in STAGES
        assert {made.key for made in step.inputs.values()} <= seen
        assert step.key not in seen
        seen.add(step.key)


def test_both_heads_are_evaluated_pretrained_and_finetuned_beside_the_lead():
    evaluated = {key for key in _by_key() if key.startswith("evaluate/")}
    assert evaluated == {
        "evaluate/tiny-lead",
        "evaluate/tiny-diffusion-pretrained",
        "evaluate/tiny-diffusion-finetuned",
        "evaluate/tiny-lm-pretrained",
        "evaluate/tiny-lm-finetuned",
    }


@pytest.mark.parametrize(
    "assignment",
    [
        "pretrain.execution.num_workers=2",
        "tokens.execution.num_workers=1",
        "evaluate.execution.batch_size=3",
        "pretrain.execution.micro_batch_size=1",
        "finetune.execution.checkpoint_every=7",
    ],
)
def test_where_and_how_fast_change_no_fingerprint(assignment):
    assert _changed(assignment) == set()


def test_a_change_reaches_exactly_what_depends_on_it():
    lm = {key for key in _by_key() if "tiny-lm" in key}
    diffusion = {key for key in _by_key() if "tiny-diffusion" in key}
    assert _changed("pretrain.diffusion.noise_draws=2") == diffusion | {"report/tiny"}
    assert _changed("model.block_size=8") == diffusion | {"report/tiny"}
    assert _changed("evaluate.lead_sentences=2") == {"evaluate/tiny-lead", "report/tiny"}
    assert _changed("evaluate.num_steps=4") == {k for k in diffusion if k.startswith("evaluate/")} | {"report/tiny"}
    assert _changed("pretrain.steps=3") == lm | diffusion | {"report/tiny"}
    assert _changed("tokenizer.vocab_size=999") == set(_by_key()) - {"corpus/tiny", "evaluate/tiny-lead"}


def test_selection_by_stage_and_with_what_it_needs():
    everything = steps(configure("tiny"))
    assert [s.key for s in select(everything, ["tokens"], {}, upstream=False)] == ["tokens/tiny"]
    assert [s.key for s in select(everything, ["tokens"], {}, upstream=True)] == [
        "corpus/tiny",
        "tokenizer/tiny",
        "tokens/tiny",
    ]
    assert select(everything, [], {}, upstream=True) == everything


class _Record:
    """As much of a record as choosing steps needs."""


def test_a_given_input_that_no_step_takes_is_refused():
    record = _Record()
    record.id, record.stage, record.identity, record.fingerprint = "tokens/x@v1", "tokens", {}, "0"
    with pytest.raises(ConfigError, match=r"no step of corpus takes tokens/x@v1 as tokens"):
        select(steps(configure("tiny")), ["corpus"], {"tokens": record}, upstream=False)
