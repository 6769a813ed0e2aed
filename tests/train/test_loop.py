import math
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from toy_training import (
    LENGTH,
    ROWS,
    grad_norms,
    losses,
    metrics,
    no_model,
    run,
    run_ranks,
    same,
    stop_at,
    toy_model,
    toy_setup,
    validations,
    weights,
)

from bitlm.diffusion.bound import nats_per_token
from bitlm.diffusion.chain import chain_per_token
from bitlm.diffusion.noise import BlockShape, NoiseKeys, block_noise
from bitlm.errors import BitLMError, ConfigError
from bitlm.model.model import BitLMForCausalLM
from bitlm.train.loop import train

HEADS = ["diffusion", "codebook", "chain", "lm"]
BFLOAT16_HEADS = ["diffusion", "codebook", "lm"]
PARTS = {"micro_batch_size": 1}
# Two terms have one sum in any order, and none is scaled by a norm, whose order of summation is the ranks' own.
TWO_TERMS = {"masked": True, "batch_size": 2, "grad_clip": 1e6}
BFLOAT16 = {"precision": "bfloat16", "execution": PARTS, **TWO_TERMS}


@pytest.mark.parametrize("head", HEADS)
def test_training_learns_and_writes_a_loadable_model(tmp_path: Path, head: str) -> None:
    reported = run(tmp_path, head=head, steps=40, execution={"checkpoint_every": 100})
    assert sum(losses(tmp_path)[-5:]) < 0.9 * sum(losses(tmp_path)[:5])
    assert reported == metrics(tmp_path)
    assert [line["step"] for line in reported if "loss" in line] == list(range(1, 41))
    assert [line["step"] for line in reported if "loss" not in line] == [*range(3, 40, 3), 40]
    model = BitLMForCausalLM.load(tmp_path / "out" / "model")
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in weights(tmp_path).items())
    assert (tmp_path / "out" / "model" / "tokenizer.json").read_bytes() == b"{}"


@pytest.mark.parametrize(
    ("head", "kind"), [("diffusion", "bound"), ("codebook", "chain"), ("chain", "chain"), ("lm", "exact")]
)
def test_a_validation_says_what_its_figure_is(tmp_path: Path, head: str, kind: str) -> None:
    last = run(tmp_path, head=head, steps=1)[-1]
    model, batches = BitLMForCausalLM.load(tmp_path / "out" / "model"), toy_setup(tmp_path, head=head).batches
    validated = batches.validation(range(batches.validation_count))  # there are fewer than asked for
    measure = chain_per_token if kind == "chain" else partial(nats_per_token, strata=4)
    found = measure(model, [validated], seed=0)
    assert last["validation_kind"] == kind
    assert last["validation_nats_per_token"] == pytest.approx(found.mean, rel=1e-5)
    assert last["validation_standard_error"] == pytest.approx(found.stderr, rel=1e-4)
    assert ("validation_bound_nats_per_token" in last) == (kind == "chain")
    if kind == "chain":
        bound = nats_per_token(model, [validated], seed=0, strata=4)
        assert last["validation_bound_nats_per_token"] == pytest.approx(bound.mean, rel=1e-5)
    if head != "lm":
        assert last["validation_nats_per_slot"] == pytest.approx([slot.mean for slot in found.slots], rel=1e-5)


def test_bits_per_byte_is_nats_over_ln2_and_bytes(tmp_path: Path) -> None:
    last = run(tmp_path, steps=1)[-1]
    assert last["bits_per_byte"] == pytest.approx(last["validation_nats_per_token"] / math.log(2) / 2.0)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("head", ["diffusion", "lm"])
def test_micro_batches_change_only_rounding(tmp_path: Path, head: str, masked: bool) -> None:
    run(tmp_path / "whole", head=head, masked=masked)
    run(tmp_path / "parts", head=head, masked=masked, execution={"micro_batch_size": 3})
    assert losses(tmp_path / "parts") == pytest.approx(losses(tmp_path / "whole"), rel=1e-5)
    assert validations(tmp_path / "parts") == pytest.approx(validations(tmp_path / "whole"), rel=1e-5)


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of trainings that two processes did: undisturbed ones, and one that one process had begun."""
    folder = tmp_path_factory.mktemp("two_ranks")
    for name, options in (("begun", {}), ("muon", {"optimizer": "muon"})):
        with pytest.raises(KeyboardInterrupt):
            train(toy_setup(folder / name, **options), report=stop_at(3))
    rising = {"head": "codebook", "warmup_steps": 6}  # the rates do not depend on the number of steps
    trainings = [
        ("diffusion", {"masked": True, "execution": PARTS}),
        ("lm", {"head": "lm"}),
        ("codebook", {"head": "codebook", "masked": True}),
        ("chain", {"head": "chain", "masked": True, "execution": PARTS}),  # micro-batches without a block that learns
        ("begun", {}),
        ("muon", {"optimizer": "muon"}),
        ("whole", {**rising, "steps": 6}),
        ("resumed", {**rising, "steps": 4}),
        ("resumed", {**rising, "steps": 6, "initial_model": no_model}),
        *((f"bfloat16-{head}", {"head": head, **BFLOAT16}) for head in BFLOAT16_HEADS),
    ]
    run_ranks(2, [(folder / name, options) for name, options in trainings])
    return folder


@pytest.mark.parametrize(
    ("head", "masked", "execution"),
    [
        ("diffusion", True, {}),
        ("diffusion", True, PARTS),
        ("codebook", True, {}),
        ("chain", True, {}),
        ("lm", False, {}),
        ("lm", False, PARTS),
    ],
)
def test_grad_norm_is_that_of_the_mean_loss_of_the_whole_batch(
    tmp_path: Path, two_ranks: Path, head: str, masked: bool, execution: dict
) -> None:
    """By plain autograd over the whole batch at once; the optimizer hides a wrong scale, and so does the clipping."""
    diffusion = toy_setup(tmp_path, head=head).config.diffusion
    model, batch = toy_model(head), toy_setup(tmp_path, head=head, masked=masked).batches.train(range(4))
    noise = None
    if head != "lm":
        shape = BlockShape(LENGTH // 4, 4, model.config.num_bits)
        noise = block_noise(NoiseKeys(0, batch.indices, batch.epochs), shape, diffusion)
    output = model(
        batch.input_ids,
        batch.attention_mask,
        noise=noise,
        loss_tokens=batch.loss_tokens,
        diffusion=diffusion,
    )
    output.loss.backward()
    gradients = [parameter.grad.double() for parameter in model.parameters() if parameter.grad is not None]
    norm = math.sqrt(sum(float((gradient**2).sum()) for gradient in gradients))
    run(tmp_path, head=head, masked=masked, execution=execution, steps=1)
    assert grad_norms(tmp_path)[0] == pytest.approx(norm, rel=1e-5)
    assert grad_norms(two_ranks / head)[0] == pytest.approx(norm, rel=1e-5)


@pytest.mark.parametrize(("head", "masked"), [("diffusion", True), ("codebook", True), ("chain", True), ("lm", False)])
def test_two_ranks_change_only_rounding(tmp_path: Path, two_ranks: Path, head: str, masked: bool) -> None:
    run(tmp_path, head=head, masked=masked)
    assert losses(two_ranks / head) == pytest.approx(losses(tmp_path), rel=1e-5)
    assert validations(two_ranks / head) == pytest.approx(validations(tmp_path), rel=1e-5)
    for name, value in weights(tmp_path).items():
        torch.testing.assert_close(weights(two_ranks / head)[name], value, rtol=0, atol=2e-4)


def test_two_ranks_go_on_where_one_stopped_and_one_where_two_did(tmp_path: Path, two_ranks: Path) -> None:
    run(tmp_path)
    assert losses(two_ranks / "begun") == pytest.approx(losses(tmp_path), rel=1e-5)
    shutil.copytree(two_ranks / "begun", tmp_path / "again")
    (tmp_path / "again" / "checkpoints" / "step-00000006" / "checkpoint.json").unlink()
    assert run(tmp_path / "again")[0]["step"] == 5
    assert losses(tmp_path / "again") == pytest.approx(losses(tmp_path), rel=1e-5)


def test_two_ranks_go_on_with_muon(tmp_path: Path, two_ranks: Path) -> None:
    """Muon orthogonalizes in bfloat16, which makes its own rounding of gradients that differ in float rounding."""
    run(tmp_path, optimizer="muon")
    assert losses(two_ranks / "muon") == pytest.approx(losses(tmp_path), rel=1e-3)
    assert validations(two_ranks / "muon") == pytest.approx(validations(tmp_path), rel=1e-3)


@pytest.mark.parametrize("head", BFLOAT16_HEADS)
def test_bfloat16_is_the_same_model_on_one_rank_and_on_two(tmp_path: Path, two_ranks: Path, head: str) -> None:
    """In equal micro-batches, whose gradients are summed in float32.

    Another order of that sum would grow: a weight that differs in its last bit may round to another bfloat16.
    """
    run(tmp_path / "exact", head=head, **TWO_TERMS)
    run(tmp_path / "one", head=head, **BFLOAT16)
    one, two = tmp_path / "one", two_ranks / f"bfloat16-{head}"
    for figures in (losses, validations, grad_norms):
        assert figures(two) == pytest.approx(figures(one), rel=1e-6)
        assert figures(one) == pytest.approx(figures(tmp_path / "exact"), rel=0.05)
        assert figures(one) != pytest.approx(figures(tmp_path / "exact"), rel=1e-5)
    assert all(value.dtype == torch.float32 for value in weights(one).values())


def test_a_restart_makes_no_model(tmp_path: Path, two_ranks: Path) -> None:
    """No weights are drawn, counted, fetched or broadcast: all that is needed lies in the checkpoint."""
    options = {"head": "codebook", "masked": True}
    run(tmp_path / "whole", **options)
    with pytest.raises(KeyboardInterrupt):
        train(toy_setup(tmp_path / "cut", **options), report=stop_at(5))
    assert run(tmp_path / "cut", initial_model=no_model, **options)[0]["step"] == 5
    assert same(tmp_path / "whole", tmp_path / "cut")
    assert losses(tmp_path / "cut") == losses(tmp_path / "whole")
    assert same(two_ranks / "whole", two_ranks / "resumed")
    assert losses(two_ranks / "whole") == losses(two_ranks / "resumed")
    assert validations(two_ranks / "whole")[-1] == validations(two_ranks / "resumed")[-1]


def test_same_run_same_bits(tmp_path: Path) -> None:
    run(tmp_path / "a")
    run(tmp_path / "b")
    assert same(tmp_path / "a", tmp_path / "b")


def test_another_seed_gives_other_weights(tmp_path: Path) -> None:
    run(tmp_path / "a")
    run(tmp_path / "b", seed=1)
    assert not same(tmp_path / "a", tmp_path / "b")


@pytest.mark.parametrize(("head", "killed_at"), [("diffusion", 1), ("diffusion", 5), ("diffusion", 6), ("chain", 4)])
def test_resumed_is_bit_identical_to_undisturbed(tmp_path: Path, head: str, killed_at: int) -> None:
    run(tmp_path / "whole", head=head)
    with pytest.raises(KeyboardInterrupt):
        train(toy_setup(tmp_path / "cut", head=head), report=stop_at(killed_at))
    reported = run(tmp_path / "cut", head=head)
    assert reported[0]["step"] == killed_at - (killed_at - 1) % 2
    assert same(tmp_path / "whole", tmp_path / "cut")
    assert losses(tmp_path / "cut") == losses(tmp_path / "whole")
    assert validations(tmp_path / "cut") == validations(tmp_path / "whole")


def test_a_run_that_had_ended_only_writes_its_model_again(tmp_path: Path) -> None:
    run(tmp_path)
    (tmp_path / "out" / "model" / "model.safetensors").unlink()
    assert run(tmp_path) == []
    assert len(losses(tmp_path)) == 6


def test_divergence_stops_with_the_step(tmp_path: Path) -> None:
    setup = toy_setup(tmp_path)

    def broken() -> BitLMForCausalLM:
        model = toy_model("diffusion")
        model.start_block.data[0, 0] = math.nan
        return model

    with pytest.raises(BitLMError, match=r"diverged at step 1: loss nan.*learning_rate"):
        train(replace(setup, initial_model=broken), report=lambda line: None)


def test_every_sequence_is_fed_once_per_epoch(tmp_path: Path) -> None:
    setup = toy_setup(tmp_path, steps=ROWS // 4, execution={"micro_batch_size": 3})
    seen: list[tuple[int, int]] = []
    original = setup.batches.train

    def spy(positions: range):
        batch = original(positions)
        seen.extend(zip(batch.epochs, batch.indices, strict=True))
        return batch

    setup.batches.train = spy  # type: ignore[method-assign]
    train(setup, report=lambda line: None)
    assert seen == [(0, i) for i in range(ROWS)]


def test_batch_that_does_not_divide_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bitlm.train.ranks.world", lambda: 3)
    with pytest.raises(ConfigError, match="batch_size = 4 does not divide among 3 workers"):
        run(tmp_path)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_training_on_a_gpu_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^device 'cuda': torch .*; choose one of: cpu$"):
        run(tmp_path, execution={"use_gpu": True})
