"""Estimates against what the stage then makes of the same files."""

import gzip
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bitlm.config import TokenizerConfig
from bitlm.data.shards.encode import Kit
from bitlm.data.shards.engine import TextEncoder
from bitlm.data.shards.estimate import SAMPLE_FILES, TextSource, estimate
from bitlm.data.shards.tokenizer import describe, train
from bitlm.data.sources.files import SourceFile, format_of
from bitlm.data.sources.held_out import HeldOut, held_out_table
from bitlm.errors import SourceError
from bitlm_flows import cli

WORDS = ["item", "value", "return", "none", "where", "given", "before", "after", "list", "of", "names", "the"]


def texts(count: int, seed: int) -> list[str]:
    rng = np.random.default_rng(seed)
    return [" ".join(rng.choice(WORDS, rng.integers(5, 80))) for _ in range(count)]


@pytest.fixture(scope="module")
def data() -> bytes:
    return train(texts(200, 0), TokenizerConfig(vocab_size=300))


@pytest.fixture(scope="module")
def kit(data: bytes) -> Kit:
    return Kit(TextEncoder(data), describe(data, TokenizerConfig()), HeldOut(held_out_table([])), 0.1)


def listed(folder: Path) -> list[SourceFile]:
    return [
        SourceFile(url=str(p), path=p.name, format=format_of(p.name), bytes=p.stat().st_size, etag="")
        for p in sorted(folder.iterdir())
    ]


def test_many_files(tmp_path: Path, kit: Kit) -> None:
    made = [texts(rows, seed) for seed, rows in enumerate([300] * 10 + [900] * 10)]
    for number, rows in enumerate(made):
        pq.write_table(pa.table({"text": rows}), tmp_path / f"{number:02d}.parquet", row_group_size=100)
    found = estimate(TextSource(listed(tmp_path), "text", None), kit, 1.0, 4)
    flat = [text for rows in made for text in rows]
    tokens = len(kit.encoder.encode(flat).ids) + len(flat)
    assert (found.files, found.sample_files, found.workers) == (20, SAMPLE_FILES, 4)
    assert found.documents == pytest.approx(len(flat), rel=0.1)
    assert found.text_bytes == pytest.approx(sum(map(len, flat)), rel=0.1)
    assert found.tokens == pytest.approx(tokens, rel=0.1)
    assert found.output_bytes > found.tokens * kit.info.num_bits / 8
    assert found.wall_seconds == pytest.approx(1.0 + found.core_seconds / 4)
    again = estimate(TextSource(listed(tmp_path), "text", None), kit, 1.0, 4)
    assert (again.tokens, again.output_bytes, again.documents) == (found.tokens, found.output_bytes, found.documents)


def test_jsonl_is_taken_by_its_size(tmp_path: Path, kit: Kit) -> None:
    rows = texts(500, 1)
    lines = "\n".join(json.dumps({"text": text}) for text in rows).encode()
    (tmp_path / "a.jsonl").write_bytes(lines)
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(lines))
    found = estimate(TextSource(listed(tmp_path), "text", None), kit, 0.0, 1)
    assert found.documents == pytest.approx(1000, rel=0.5)
    assert found.text_bytes == pytest.approx(2 * sum(map(len, rows)), rel=0.5)


def test_a_source_without_usable_row_is_an_error(tmp_path: Path, kit: Kit) -> None:
    (tmp_path / "a.jsonl").write_bytes(b"")
    source = TextSource(listed(tmp_path), "text", None)
    with pytest.raises(SourceError, match="the sample of 1 of 1 files: none of the 0 rows"):
        estimate(source, kit, 0.0, 1)
    pq.write_table(pa.table({"txet": texts(5, 2)}), tmp_path / "b.parquet")
    with pytest.raises(SourceError, match=r"none of the 5 rows of its 2 files .* the nearest column is 'txet'"):
        estimate(TextSource(listed(tmp_path), "text", None), kit, 0.0, 1)
    pq.write_table(pa.table({"text": texts(5, 2)}), tmp_path / "c.parquet")
    assert estimate(TextSource(listed(tmp_path), "text", None), kit, 0.0, 1).tokens > 0


def test_the_command_prints_it(tmp_path: Path, data: bytes, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "source").mkdir()
    pq.write_table(pa.table({"text": texts(300, 2)}), tmp_path / "source" / "a.parquet")
    (tmp_path / "tokenizer.json").write_bytes(data)
    given = ["--root", str(tmp_path / "root")]
    for setting in (f"corpus.source={tmp_path}/source", f"tokenizer.source={tmp_path}/tokenizer.json"):
        given += ["--set", setting]
    assert cli.main(["plan", "tokens", "--json", *given]) == 0
    *others, step = json.loads(capsys.readouterr().out)
    assert (step["step"], step["estimate"]["documents"]) == ("tokens/tiny", 300)
    assert not any("estimate" in other for other in others)
    assert cli.main(["plan", "tokens", *given]) == 0
    assert "core-hours" in capsys.readouterr().out
    assert cli.main(["plan", "tokens", "--root", str(tmp_path / "root")]) == 0
    assert "bitlm run corpus" in capsys.readouterr().out
    assert cli.main(["plan", "pretrain", *given]) == 0
    assert "core-hours" not in capsys.readouterr().out
