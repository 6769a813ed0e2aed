import pytest
from hypothesis import given
from hypothesis import strategies as st
from toy_training import ToyBatches, toy_model

from bitlm.config import PretrainConfig
from bitlm.diffusion.bound import nats_per_token
from bitlm.train.validate import SEED, spread, validate


@given(st.integers(1, 5000), st.integers(1, 300))
def test_validated_sequences_are_spread_over_the_whole_split(available: int, count: int) -> None:
    chosen = spread(available, count)
    assert len(chosen) == min(available, count)
    assert len(set(chosen)) == len(chosen)
    gaps = [after - before for before, after in zip(chosen, [*chosen[1:], available], strict=True)]
    assert chosen == sorted(chosen)
    assert all(gap in (available // len(chosen), available // len(chosen) + 1) for gap in gaps)


@pytest.mark.parametrize("stagger", [0.0, 0.5, 1.0])
def test_the_figure_is_the_bound_along_the_configured_path(stagger: float) -> None:
    model, batches = toy_model("codebook"), ToyBatches(4)
    config = PretrainConfig(batch_size=3, validation_batches=2, validation_stagger=stagger)
    chosen = spread(batches.validation_count, 6)
    fed = [(batches.validation(chosen).input_ids, None, None, [1000 + index for index in chosen])]
    bounds = {s: nats_per_token(model, fed, seed=SEED, strata=4, stagger=s).mean for s in (0.0, 0.5, 1.0)}
    figures = validate(model, batches, config)
    assert figures["validation_nats_per_token"] == pytest.approx(bounds[stagger], rel=1e-6)
    assert len({round(bound, 3) for bound in bounds.values()}) == 3  # they can be told apart
