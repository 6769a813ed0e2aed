"""One contender of ``benchmarks/tokens.py``, in a process of its own: its caches are cold, its start is counted apart.

Prints one line of JSON. ``start``: CPU seconds until it could begin (imports, tokenizer); ``work``: CPU seconds from
then on; ``wall``: their wall time.
"""

import argparse
import json
import logging
import os
import resource
import time
from collections import Counter
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

BATCH = 1000
UNIT_BYTES = 2**28  # the stage's default
SMALL_UNIT_BYTES = 2**24  # so that there are enough for several workers
Measured = dict[str, Any]


class Timer:
    """From ``ready`` on it is work."""

    def ready(self) -> None:
        self.start = time.process_time()
        self._wall = time.perf_counter()

    def done(self, tokens: int, **more: Any) -> Measured:
        work, wall = time.process_time() - self.start, time.perf_counter() - self._wall
        return {"tokens": tokens, "start": self.start, "work": work, "wall": wall, "peak": _peak(), **more}


def datatrove(sources: Path, tokenizer: Path, out: Path, timer: Timer) -> Measured:
    """From parquet to its own token files, with its own settings but for the shuffling, which is left out."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    from datatrove.pipeline.readers import ParquetReader
    from datatrove.pipeline.tokens import DocumentTokenizer
    from loguru import logger
    from pyarrow import parquet as pq

    logger.remove()
    reader = ParquetReader(str(sources), read_metadata=False)
    writer = DocumentTokenizer(
        str(out), tokenizer_name_or_path=str(tokenizer), eos_token="<|endoftext|>", shuffle_documents=False
    )
    writer.tokenizer  # noqa: B018  it is loaded here
    timer.ready()
    writer.run(reader.run())
    documents = sum(pq.read_metadata(path).num_rows for path in sources.glob("*.parquet"))
    return timer.done(sum(path.stat().st_size for path in out.rglob("*.ds")) // 4 - documents)


def datasets_map(sources: Path, tokenizer: Path, out: Path, timer: Timer) -> Measured:
    """``datasets.map`` with batches, from parquet to its Arrow cache."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    os.environ["HF_DATASETS_CACHE"] = str(out)
    import datasets
    import pyarrow.compute as pc
    from tokenizers import Tokenizer

    datasets.disable_progress_bars()
    engine = Tokenizer.from_file(str(tokenizer))
    timer.ready()
    files = [str(path) for path in sorted(sources.glob("*.parquet"))]
    data = datasets.load_dataset("parquet", data_files=files, split="train", cache_dir=str(out))

    def encode(batch: dict[str, list]) -> dict[str, list]:
        return {"ids": [encoding.ids for encoding in engine.encode_batch_fast(batch["text"])]}

    done = data.map(encode, batched=True, batch_size=BATCH, remove_columns=data.column_names)
    return timer.done(pc.sum(pc.list_value_length(done.data.column("ids"))).as_py())


def raw_tokenizers(sources: Path, tokenizer: Path, out: Path, timer: Timer) -> Measured:
    """``encode_batch_fast`` on strings in memory, the ids as Python lists."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    from tokenizers import Tokenizer

    engine, texts = Tokenizer.from_file(str(tokenizer)), _texts(sources)
    timer.ready()
    tokens = 0
    for batch in texts:
        tokens += sum(len(encoding.ids) for encoding in engine.encode_batch_fast(batch, add_special_tokens=False))
    return timer.done(tokens)


def raw_engine(sources: Path, tokenizer: Path, out: Path, timer: Timer) -> Measured:
    """``encode_batch_flat`` of fastokens on strings in memory, as the stage sets it up."""
    from bitlm.data.shards.engine import TextEncoder

    engine, texts = TextEncoder(tokenizer.read_bytes()), _texts(sources)
    timer.ready()
    return timer.done(sum(len(engine.encode(batch).ids) for batch in texts))


def stage(sources: Path, tokenizer: Path, out: Path, timer: Timer) -> Measured:
    """The tokens stage's units in this process: parquet to shards, every check included."""
    from bitlm.data.shards import encode

    job, units = _job(sources, out, UNIT_BYTES)
    encode.load_kit(job)
    timer.ready()
    results = [encode.encode_unit(unit, job) for unit in units]
    phases: Counter[str] = Counter()
    for result in results:
        phases.update(result.seconds)
    size = sum(shard.bytes for result in results for found in result.record.shards.values() for shard in found)
    side = sum(file.bytes for result in results for file in result.record.written) - size
    return timer.done(_tokens(results), phases=phases, bytes=size, side_bytes=side)


def stage_workers(sources: Path, tokenizer: Path, out: Path, timer: Timer, count: int) -> Measured:
    """The same units as Ray tasks, on workers that have loaded the tokenizer. ``work`` is the CPU time of the units."""
    import ray

    from bitlm.data.shards import encode
    from bitlm_tasks.spread import spread
    from bitlm_tasks.tokens import encode_unit

    job, units = _job(sources, out, SMALL_UNIT_BYTES)
    quiet = {"include_dashboard": False, "log_to_driver": False, "logging_level": logging.ERROR}
    ray.init(address="local", num_cpus=count, object_store_memory=10**8, **quiet)

    @ray.remote(num_cpus=1)
    def load(job: Any) -> int:
        encode.load_kit(job)
        time.sleep(5)  # so that each worker takes one
        return os.getpid()

    pids = ray.get([load.remote(job) for _ in range(count)])
    assert len(set(pids)) == count, pids
    shared, results = ray.put(job), {}
    timer.ready()
    spread(encode_unit, ((unit, shared) for unit in units), count, results.__setitem__)
    measured = timer.done(_tokens(results.values()))
    work = sum(sum(result.seconds.values()) for result in results.values())
    peak = max(result.peak_bytes for result in results.values()) / 1e6
    ray.shutdown()
    return measured | {"work": work, "peak": peak}


CONTENDERS: dict[str, Callable[..., Measured]] = {
    "datatrove": datatrove,
    "datasets": datasets_map,
    "tokenizers": raw_tokenizers,
    "engine": raw_engine,
    "stage": stage,
    "stage-1": partial(stage_workers, count=1),
    "stage-2": partial(stage_workers, count=2),
}


def _job(sources: Path, out: Path, unit_bytes: int) -> tuple[Any, list]:
    """The job and its units, over the artifacts that ``benchmarks/tokens.py`` made beside the sources."""
    from bitlm.artifacts.store import Store
    from bitlm.data.shards import units as tokens
    from bitlm.data.sources.corpus import load_corpus

    store = Store(str(sources.parent / "root"))
    corpus, tokenizer = store.newest("corpus", "bench"), store.newest("tokenizer", "bench")
    described = load_corpus(store, corpus)
    job = tokens.Job(store.root, str(out), 0, corpus, tokenizer, "text", "id", described.validation_fraction)
    return job, tokens.plan(described.files, unit_bytes)


def _tokens(results: Iterable[Any]) -> int:
    """Without the end tokens, which the engines alone do not write."""
    shards = [shard for result in results for found in result.record.shards.values() for shard in found]
    return sum(shard.tokens - shard.filling - shard.documents for shard in shards)


def _texts(sources: Path) -> list[list[str]]:
    import pyarrow.parquet as pq

    texts = [text for path in sorted(sources.glob("*.parquet")) for text in pq.read_table(path)["text"].to_pylist()]
    return [texts[start : start + BATCH] for start in range(0, len(texts), BATCH)]


def _peak() -> float:
    """MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("contender", choices=CONTENDERS)
    for name in ("sources", "tokenizer", "out"):
        parser.add_argument(name, type=Path)
    args = parser.parse_args()
    print(json.dumps(CONTENDERS[args.contender](args.sources, args.tokenizer, args.out, Timer())))


if __name__ == "__main__":
    main()
