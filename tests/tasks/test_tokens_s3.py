"""The tokens stage with its source and its root on an object store: in good weather, in bad, and locked out."""

import json
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import ray
from s3 import PASSING, S3, _moto, s3  # noqa: F401

from bitlm import storage
from bitlm.artifacts.store import Store
from bitlm.config import PretrainConfig
from bitlm.data.reading.batches import open_pretrain
from bitlm.errors import SourceError
from tests.tasks.data_stages import digests, run_stages


@pytest.fixture
def source(s3: S3, samples: Path, tmp_path: Path) -> str:  # noqa: F811
    """Half of the FineWeb rows in a parquet file, some more in lines, both in the bucket."""
    table = pq.read_table(samples / "fineweb" / "first_rows.parquet", columns=["text"])
    pq.write_table(table.slice(0, 120), tmp_path / "a.parquet", row_group_size=20)
    lines = [json.dumps({"text": text}) for text in table["text"].to_pylist()[120:160]]
    (tmp_path / "b.jsonl").write_text("\n".join([*lines, "no json"]))
    url = storage.join(s3.root, "source")
    for name in ("a.parquet", "b.jsonl"):
        storage.upload(str(tmp_path / name), storage.join(url, name))
    return url


@pytest.fixture
def cluster(s3: S3) -> Iterator[None]:  # noqa: F811
    """Workers have the environment in which Ray starts: the store's address in it."""
    ray.shutdown()
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, object_store_memory=10**8)
    yield
    ray.shutdown()


@pytest.mark.usefixtures("cluster")
def test_faults_of_the_store_change_nothing_and_a_refusal_ends_the_run(s3: S3, source: str, samples: Path) -> None:  # noqa: F811
    settings = [
        "corpus.name=real",
        f"corpus.source={source}",
        f"corpus.summaries={samples}/xsum",
        "tokenizer.vocab_size=512",
        "corpus.validation_fraction=0.2",
        "tokens.unit_bytes=50000",
    ]
    plain, disturbed, refused = (storage.join(s3.root, name) for name in ("plain", "disturbed", "refused"))
    expected = run_stages(plain, *settings)["tokens"]
    assert expected.metrics["rejected"] == 1
    assert expected.metrics["train_shards"] > 3

    done = s3.disturb(0.05, seed=2)
    record = run_stages(disturbed, *settings)["tokens"]
    assert set(done) == set(PASSING), done
    assert digests(record) == digests(expected)
    Store(disturbed).verify(record)
    batches, quiet = (
        open_pretrain(Store(root), made, PretrainConfig(sequence_length=64, window_shards=2))
        for root, made in ((disturbed, record), (plain, expected))
    )
    for start in range(0, 200, 25):
        positions = range(start, start + 25)
        assert batches.train(positions).input_ids.equal(quiet.train(positions).input_ids)
    batches.close()
    quiet.close()
    s3.faults.clear()
    assert storage.list_folders(disturbed) == ["corpus", "tokenizer", "tokens"]

    run_stages(refused, *settings, last="tokenizer")
    s3.fail("PUT", "/shards/", "403 InvalidAccessKeyId")
    with pytest.raises(SourceError, match=r"s3://.*/shards/.*: access denied; check the credentials.*AWS_PROFILE"):
        run_stages(refused, *settings)
    assert Store(refused).ids("tokens") == []
    s3.faults.clear()
    assert digests(run_stages(refused, *settings)["tokens"]) == digests(expected)
