"""The ablation's rows are settings that the pipeline takes, and a short run of it prints a whole table."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))
import ablation
import ablation_judge
import ablation_tokens

from bitlm.config import TokenizerConfig, configure
from bitlm.data.shards import tokenizer
from bitlm.model import BitLMConfig
from bitlm.model.config import Vocabulary


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A work folder whose tokens are made of a few sentences."""
    texts = [f"Return the {number}th item of the list, or nothing where there are fewer." for number in range(900)]
    monkeypatch.setattr(ablation_tokens, "_texts", lambda: texts)
    monkeypatch.setattr(ablation, "VOCABULARY", 300)
    monkeypatch.setattr(ablation, "LENGTH", 32)
    monkeypatch.setattr(ablation_judge, "SAMPLERS", [{"sampler": "commit"}, {"num_steps": 2, "stagger": 0.5}])
    monkeypatch.setitem(ablation.SIZES, "small", {**ablation.SIZES["small"], "num_layers": 1, "head.num_layers": 1})
    return tmp_path / "work"


@pytest.mark.parametrize("name", [*ablation.ROWS, "chain+model.head.codebook_rank=16"])
def test_a_row_is_settings_of_the_pipeline(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["ablation.py"])
    row = ablation.row_of(name)
    config = configure(ablation.PRESET, ablation.settings(row, ablation._arguments()))
    assert (config.pretrain.init_from == "lm") == (row.start is not None)
    made = BitLMConfig.from_sections(config.model, row.head, Vocabulary(1024, 10, end_id=0, pad_id=1))
    assert made.diffusion_head.codebook_rank == (16 if "rank" in name else None)


def test_the_row_tiny_is_the_preset(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["ablation.py", "--sizes", "trial"])
    preset = configure("tiny", [])
    row = configure(ablation.PRESET, ablation.settings(ablation.row_of("tiny"), ablation._arguments()))
    assert row.pretrain.diffusion == preset.pretrain.diffusion
    assert (row.model.head, row.model.mask) == (preset.model.head, preset.model.mask)
    assert (row.pretrain.optimizer, row.model.slot_embedding) == (
        preset.pretrain.optimizer,
        preset.model.slot_embedding,
    )


def test_no_two_rows_are_the_same() -> None:
    assert len({(row.head, *row.settings) for row in ablation.ROWS.values()}) == len(ablation.ROWS)


def test_a_short_run_prints_its_table_and_goes_on_where_it_was(
    work: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    options = "--steps 4 --batch 2 --validation 2 --threads 1 --judge --judged 8 --rows article,codebook-noise,lm"
    monkeypatch.setattr(sys, "argv", ["ablation.py", *options.split(), "--work", str(work)])
    ablation.main()
    first = capsys.readouterr().out
    for name in ("article", "codebook-noise", "lm"):
        assert f"\n| {name} | " in first
    found = json.loads((work / "results.json").read_text())
    rows = found["rows"]
    assert [[point["step"] for point in row["points"]] for row in rows.values()] == [[2, 4]] * 4  # and lm-muon
    for row in rows.values():
        diffusion = {"chain", "joint", "stagger 0.5", "one after the other"}
        assert set(row["nats"]) == ({"exact"} if row["head"] == "lm" else diffusion)
        for figures in row["nats"].values():
            assert np.mean(figures["slots"]) == pytest.approx(figures["mean"])
    assert [line["model"] for line in found["judged"]] == ["real text", *["article"] * 2, *["codebook-noise"] * 2]
    monkeypatch.setattr(sys, "argv", [*sys.argv, "--resume"])
    ablation.main()
    table = first[first.index("\nNats per token") :]
    assert table in capsys.readouterr().out


def test_a_row_goes_on_behind_the_batches_of_its_start(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both heads see the same batches behind the start, as in the pipeline."""
    seen: dict[str, list[int]] = {}
    train = ablation.train

    def spied(setup, **others):
        name = Path(setup.folders.out).parent.name.rpartition("-")[0]
        batches = setup.batches.train
        seen[name] = []

        def spied_batches(positions):
            batch = batches(positions)
            seen[name] += batch.indices
            return batch

        monkeypatch.setattr(setup.batches, "train", spied_batches)
        return train(setup, **others)

    monkeypatch.setattr(ablation, "train", spied)
    options = "--steps 3 --batch 2 --validation 1 --threads 1 --points 1 --rows chain-all,lm-on"
    monkeypatch.setattr(sys, "argv", ["ablation.py", *options.split(), "--work", str(work)])
    ablation.main()
    assert list(seen) == ["lm", "chain-all", "lm-on"]
    whole = ablation_tokens.TokenBatches(ablation_tokens.made_tokens(work, 300), 32, 0).train(range(12)).indices
    assert seen == {"lm": whole[:6], "chain-all": whole[6:], "lm-on": whole[6:]}
    rows = json.loads((work / "results.json").read_text())["rows"]
    assert rows["lm-on"]["points"][-1]["validation_nats_per_token"] < 0.9 * float(
        rows["lm"]["points"][-1]["validation_nats_per_token"]
    )


def test_tokens_are_the_text_in_two_splits(work: Path) -> None:
    folder = ablation_tokens.made_tokens(work, 300)
    texts = [tokenizer.TextTokenizer.load(folder).decode(np.load(folder / f"{s}.npy")) for s in ("train", "validation")]
    assert sum(map(len, texts)) == sum(map(len, ablation_tokens._texts()))
    assert "899th" in texts[0] + texts[1]
    batches = ablation_tokens.TokenBatches(folder, 32, 0)
    assert batches.counts(300).sum() == np.load(folder / "train.npy").size // 32 * 32
    assert TokenizerConfig().end_token not in texts[0]
