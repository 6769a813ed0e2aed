import json
from dataclasses import asdict
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from made import begin, draft, make

from bitlm import storage
from bitlm.artifacts import Record, Store
from bitlm.config import TokenizerConfig
from bitlm.data.reading.provenance import CONTEXT, TokenProvenance, trace_token
from bitlm.data.shards.encode import encode_unit
from bitlm.data.shards.format import Shard
from bitlm.data.shards.tokenizer import INFO_FILE, TOKENIZER_FILE, describe, load_tokenizer, train
from bitlm.data.shards.units import TOKEN_SPLITS, TOKENS_FILE, Job, plan
from bitlm.data.sources import corpus
from bitlm.data.sources.files import SourceFile
from bitlm.data.sources.held_out import held_out_table, write_held_out
from bitlm.errors import ArtifactError, ConfigError
from bitlm_flows.cli import main

END = "<|endoftext|>"
TEXTS = [f"Text number {i}: " + "word by word, " * (i % 17) + f"so ends {i}." for i in range(90)]


def _source(folder: Path) -> list[corpus.TextFile]:
    """60 texts in six row groups of a parquet file, and 30 in lines between lines that hold none."""
    pq.write_table(pa.table({"text": TEXTS[:60]}), folder / "a.parquet", row_group_size=10)
    lines = [line for text in TEXTS[60:] for line in (json.dumps({"text": text}), '{"text": null}')]
    (folder / "b.jsonl").write_text("\n".join(lines))
    files = []
    for name, kind in (("a.parquet", "parquet"), ("b.jsonl", "jsonl")):
        tag = storage.stat_tag(str(folder / name))
        files.append(
            corpus.describe_file(SourceFile(url=str(folder / name), path=name, format=kind, **tag._asdict()), ("text",))
        )
    return files


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Store, Record]:
    """Tokens of these texts, in several units, as their stage makes them."""
    folder = tmp_path_factory.mktemp("data")
    store, files = Store(str(folder / "root")), _source(folder)
    config = TokenizerConfig(vocab_size=320, end_token=END)
    data = train(TEXTS, config)
    info = describe(data, config).model_dump_json().encode()
    tokenizer = make(store, draft("tokenizer"), {TOKENIZER_FILE: data, INFO_FILE: info})
    of = draft("corpus")
    work = begin(store, of, {"source.json": b"{}"})
    write_held_out(held_out_table([]), work.out)
    inputs = {"corpus": store.commit(work, of), "tokenizer": tokenizer}
    of = draft("tokens", inputs=inputs)
    work = begin(store, of, {})
    job = Job(store.root, work.out, 1, inputs["corpus"], tokenizer, "text", None, 0.2)
    records = [encode_unit(unit, job).record for unit in plan(files, 1500)]
    assert len(records) > 2
    splits = {
        split: {"shards": [entry.model_dump() for record in records for entry in record.shards.get(split, ())]}
        for split in TOKEN_SPLITS
    }
    storage.write_atomic(storage.join(work.out, TOKENS_FILE), json.dumps({"splits": splits}).encode())
    return store, store.commit(work, of)


def test_every_token_is_traced_to_its_row(made: tuple[Store, Record]) -> None:
    store, record = made
    shards = json.loads(Path(store.url(record.id, TOKENS_FILE)).read_bytes())["splits"]["validation"]["shards"]
    stream = [int(id) for shard in shards for id in Shard(store.url(record.id, shard["path"])).ids()]
    assert len(shards) > 1
    tokenizer = load_tokenizer(store, store.load("tokenizer/tiny"))
    fillings = 0
    for at, token_id in enumerate(stream):
        found = trace_token(store, record, "validation", at)
        assert (found.at, found.token_id) == (at, token_id)
        if found.document is None:
            assert found.token == END
            fillings += 1
            continue
        document = found.document
        text = TEXTS[document.row if document.file == "a.parquet" else 60 + document.row // 2]
        ids = tokenizer.encode(text)
        assert document.url.endswith(document.file)
        assert document.length == len(ids)
        assert [*ids, tokenizer.info.end_id][document.token] == token_id
        assert found.before == tokenizer.decode(ids[max(document.token - CONTEXT, 0) : document.token])
        assert found.after == tokenizer.decode(ids[document.token + 1 : document.token + 1 + CONTEXT])
        assert found.token == (END if document.token == len(ids) else tokenizer.decode([token_id]))
    assert fillings == sum(shard["filling"] for shard in shards) > 0


def test_what_is_not_there_is_told(made: tuple[Store, Record]) -> None:
    store, record = made
    for at in (-1, 10**6):
        with pytest.raises(ConfigError, match=rf"--at {at}: the train split of tokens/tiny@v1 holds [\d,]+ tokens"):
            trace_token(store, record, "train", at)
    with pytest.raises(ConfigError, match="--split test: tokens/tiny@v1 has train and validation"):
        trace_token(store, record, "test", 0)
    with pytest.raises(ConfigError, match=r"corpus/tiny@v1 holds no tokens"):
        trace_token(store, store.load("corpus/tiny"), "train", 0)


def test_the_side_file_is_verified_too(made: tuple[Store, Record]) -> None:
    store, record = made
    path = Path(store.url(record.id, next(entry.path for entry in record.files if "docs" in entry.path)))
    data = path.read_bytes()
    path.write_bytes(data[:-1] + b"?")
    try:
        with pytest.raises(ArtifactError, match=rf"{path.name} is damaged"):
            trace_token(store, record, "train", 0)
    finally:
        path.write_bytes(data)


def test_on_the_command_line(made: tuple[Store, Record], capsys: pytest.CaptureFixture[str]) -> None:
    store, record = made
    words = ["tokens", "inspect", "tokens/tiny", "--at", "20", "--root", store.root]
    assert main([*words, "--json"]) == 0
    found: TokenProvenance = trace_token(store, record, "train", 20)
    assert json.loads(capsys.readouterr().out) == asdict(found)
    assert main(words) == 0
    shown = capsys.readouterr().out
    assert found.before + found.token + found.after in shown.replace("\n", "")
    assert f"{found.document.url} (ETag {found.document.etag}), row {found.document.row}" in shown
    assert main([*words, "--split", "tset"]) == 1
    assert "--split tset: tokens/tiny@v1 has train and validation" in capsys.readouterr().err
