"""Text to token shards: the tokens stage beside its peers, on the same files, in one run.

    python benchmarks/tokens.py --data FOLDER                         distinct text, cold caches: about 5 minutes
    python benchmarks/tokens.py --data FOLDER --tokens 100_000_000    whole processes; the sample is repeated

FOLDER holds ``fineweb/*.parquet``, ``xsum/*.parquet`` and ``qwen3/tokenizer.json``; docstrings of the installed
packages are added. Each contender runs in a process of its own. CPU seconds are those of all its threads.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import ray
from rich.console import Console
from rich.table import Table
from tokens_contenders import CONTENDERS

from bitlm.artifacts.store import Store
from bitlm.config import configure
from bitlm.data.sources import docstrings
from bitlm.steps import steps
from bitlm_tasks import corpus, tokenizer
from bitlm_tasks.run import Run, run_step

HERE = Path(__file__).parent
SCALING_TOKENS = 300_000_000  # so that the start of the workers does not count
ROUNDS = 3
PEERS = ("datatrove", "datasets", "tokenizers", "engine", "stage")
SPIN = "n = 40_000_000\nwhile n: n -= 1"
OUT = Console(width=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=os.environ.get("BITLM_SAMPLES"), help="default: $BITLM_SAMPLES")
    parser.add_argument("--tokens", type=int, help="repeat the sample up to so many tokens, and time whole processes")
    parser.add_argument("--web", action="store_true", help="without docstrings: long documents only")
    parser.add_argument("--only", nargs="+", choices=PEERS, default=PEERS)
    args = parser.parse_args()
    if args.data is None:
        parser.error("--data is needed")
    qwen3 = args.data / "qwen3" / "tokenizer.json"
    with tempfile.TemporaryDirectory() as folder:
        texts = distinct_texts(args.data, docstrings_too=not args.web)
        size = sum(len(text.encode()) for text in texts)
        repeats = max(1, round(args.tokens * 4.4 / size)) if args.tokens else 1
        place = prepare(Path(folder, "peers"), texts, repeats, args.data)
        OUT.print(f"{len(texts):,} distinct texts, {size / 1e6:.1f} MB" + f", repeated {repeats} times" * (repeats > 1))
        if repeats > 1:
            OUT.print("Repetition flatters engines that remember words, ours above all.")
        found = {name: contend(name, place, qwen3) for name in args.only}
        show(found, size * repeats, whole=bool(args.tokens))
        if not args.tokens and "stage" in found:
            scaling(prepare(Path(folder, "scaling"), texts, round(SCALING_TOKENS * 4.4 / size), args.data), qwen3)


def distinct_texts(data: Path, docstrings_too: bool) -> list[str]:
    """FineWeb, XSum and docstrings, each text once."""
    tables = [(data / "fineweb" / f"{name}.parquet", "text") for name in ("sample_10bt", "first_rows", "complete_rows")]
    tables += [(data / "xsum" / f"{name}.parquet", "document") for name in ("train", "validation_like")]
    texts = [text for path, column in tables for text in pq.read_table(path)[column].to_pylist() if text]
    for chunk in docstrings.chunks(docstrings.packages()) if docstrings_too else ():
        texts += [found.text for found in docstrings.extract(chunk)]
    return list(dict.fromkeys(texts))


def prepare(place: Path, texts: list[str], repeats: int, data: Path) -> Path:
    """Parquet files of the texts, and the corpus and tokenizer artifacts of the stage, below ``place``."""
    (place / "sources").mkdir(parents=True)
    table = pa.table({"text": texts, "id": [str(number) for number in range(len(texts))]})
    for number in range(repeats):
        pq.write_table(table, place / "sources" / f"{number:05d}.parquet", row_group_size=1000, compression="zstd")
    settings = [
        "corpus.name=bench",
        f"corpus.source={place / 'sources'}",
        f"corpus.summaries={data / 'xsum'}",
        f"tokenizer.source={data / 'qwen3' / 'tokenizer.json'}",
    ]
    config = configure("tiny", settings)
    run = Run(Store(str(place / "root")), config, console=Console(quiet=True))
    builds = {"corpus": corpus.build, "tokenizer": tokenizer.build}
    ray.init(address="local", num_cpus=1, include_dashboard=False, log_to_driver=False, object_store_memory=10**8)
    for step in steps(config):
        if step.stage in builds:
            run_step(step, run, builds[step.stage])
    ray.shutdown()
    return place


def contend(name: str, place: Path, qwen3: Path) -> dict[str, Any]:
    """What a contender measured of itself, and ``whole``: all CPU seconds of its process and its children's."""
    with tempfile.TemporaryDirectory(dir=place) as out:
        command = [sys.executable, str(HERE / "tokens_contenders.py"), name, str(place / "sources"), str(qwen3), out]
        before, started = _children(), time.perf_counter()
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, cwd=HERE.parent, env=_environment())
        if done.returncode:
            raise SystemExit(f"{name} failed")
        seconds = {"whole": _children() - before, "whole_wall": time.perf_counter() - started}
    return json.loads(done.stdout.strip().splitlines()[-1]) | seconds


def show(found: dict[str, dict[str, Any]], size: int, whole: bool) -> None:
    table = Table(title="whole processes" if whole else "distinct text, cold caches", title_justify="left")
    columns = ("contender", "M tokens", "start CPU s", "work CPU s", "M tokens/CPU s", "MB/CPU s", "× datatrove")
    for column in (*columns, "wall s", "peak MB"):
        table.add_column(column, justify="left" if column == "contender" else "right")
    key = "whole" if whole else "work"
    speeds = {name: one["tokens"] / one[key] / 1e6 for name, one in found.items()}
    for name, one in found.items():
        ratio = f"{speeds[name] / speeds['datatrove']:.1f}" if "datatrove" in speeds else ""
        wall = one["whole_wall" if whole else "wall"]
        table.add_row(
            name,
            f"{one['tokens'] / 1e6:.3f}",
            f"{one['start']:.2f}",
            f"{one['work']:.2f}",
            f"{speeds[name]:.2f}",
            f"{size / one[key] / 1e6:.1f}",
            ratio,
            f"{wall:.1f}",
            f"{one['peak']:.0f}",
        )
    OUT.print(table)
    if whole:
        seconds = ", ".join(f"{name} {one['whole']:.1f}" for name, one in found.items())
        say(f"the speeds are those of whole processes, start and imports counted; their CPU seconds: {seconds}")
    if "stage" in found:
        ours = found["stage"]
        say("stage, CPU s by phase: " + ", ".join(f"{phase} {s:.2f}" for phase, s in ours["phases"].items()))
        stored, side = (ours[key] / ours["tokens"] for key in ("bytes", "side_bytes"))
        say(f"stage, bytes per token of text: {stored:.4f} in shards, {side:.4f} in side files")
        if "engine" in found:
            say(f"stage, share of the raw engine's speed: {speeds['stage'] / speeds['engine']:.0%}")


def say(line: str) -> None:
    OUT.print(line, highlight=False, soft_wrap=True)


def scaling(place: Path, qwen3: Path) -> None:
    """Two workers against one, and two independent loops against one: the ceiling on this machine. Medians of rounds in
    which all take their turn, since other guests of a machine disturb."""
    rounds = []
    for _ in range(ROUNDS):
        one, two = (contend(name, place, qwen3) for name in ("stage-1", "stage-2"))
        rounds.append((one, two, one["wall"] / two["wall"], 2 * _spin(1) / _spin(2)))
    ones, twos, speedups, ceilings = zip(*rounds, strict=True)
    title = f"scaling, {ones[0]['tokens']:,} tokens (repeated), medians of {ROUNDS}"
    table = Table(title=title, title_justify="left")
    for column in ("", "wall s", "M tokens/s", "CPU s", "peak MB per worker"):
        table.add_column(column, justify="right")
    for name, found in (("1 worker", ones), ("2 workers", twos)):
        wall, work, peak = (median(one[key] for one in found) for key in ("wall", "work", "peak"))
        table.add_row(name, f"{wall:.2f}", f"{found[0]['tokens'] / wall / 1e6:.1f}", f"{work:.2f}", f"{peak:.0f}")
    OUT.print(table)
    each = ", ".join(f"{s:.2f} of {c:.2f}" for s, c in zip(speedups, ceilings, strict=True))
    say(
        f"2 workers: {median(speedups):.2f}× of 1; two independent loops: {median(ceilings):.2f}× of one "
        f"(round by round: {each})"
    )


def _spin(count: int) -> float:
    started = time.perf_counter()
    for process in [subprocess.Popen([sys.executable, "-c", SPIN]) for _ in range(count)]:
        process.wait()
    return time.perf_counter() - started


def _children() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _environment() -> dict[str, str]:
    path = os.pathsep.join(filter(None, [str(HERE.parent), os.environ.get("PYTHONPATH")]))
    return {**os.environ, "PYTHONPATH": path, "RAY_USAGE_STATS_ENABLED": "0", "HF_HUB_OFFLINE": "1"}


if __name__ == "__main__":
    assert set(PEERS) <= set(CONTENDERS)
    main()
