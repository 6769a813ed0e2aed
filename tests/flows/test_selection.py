import pytest

from bitlm.artifacts.record import Record
from bitlm.config import configure
from bitlm.errors import ConfigError
from bitlm.steps import steps
from bitlm_flows.selection import select


def test_selection_by_stage_and_with_what_it_needs():
    everything = steps(configure("tiny"))
    assert [s.key for s in select(everything, ["tokens"], {}, upstream=False)] == ["tokens/tiny"]
    assert [s.key for s in select(everything, ["tokens"], {}, upstream=True)] == [
        "corpus/tiny",
        "tokenizer/tiny",
        "tokens/tiny",
    ]
    assert select(everything, [], {}, upstream=True) == everything


def test_of_a_given_input_only_the_steps_that_take_it():
    record = Record.model_construct(id="pretrain/x@v1", stage="pretrain", identity={"head": "lm"}, fingerprint="0")
    replaced = steps(configure("tiny", ["pretrain.init_from=lm"]), {"init": record})
    selected = select(replaced, ["pretrain"], {"init": record}, upstream=False)
    assert {step.key for step in selected} == {"pretrain/tiny-lm", "pretrain/tiny-diffusion"}


def test_a_given_input_that_no_step_takes_is_refused():
    record = Record.model_construct(id="tokens/x@v1", stage="tokens", identity={}, fingerprint="0")
    with pytest.raises(ConfigError, match=r"no step of corpus takes tokens/x@v1 as tokens"):
        select(steps(configure("tiny")), ["corpus"], {"tokens": record}, upstream=False)
