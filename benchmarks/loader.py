"""Reading tokens for training: this project's shards beside their peers, on the same tokens, in one run.

    python benchmarks/loader.py                    64M tokens, rows of 2,048: about two minutes

Each contender runs in a process of its own, its files in the page cache. Asked of all are batches of 64 random rows, as
int64 tensors that are ready for a model, and the whole stream in order, in the form that comes cheapest. The tokens
are random ids below Qwen3's vocabulary size in documents of 700 tokens on average: no format compresses them, so text
would change nothing. Peers that do not go with this project's versions are put into a folder of their own (--peers) at
the first run.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from loader_contenders import CONTENDERS, DOCUMENT, END, SHARD
from rich.console import Console
from rich.table import Table

HERE = Path(__file__).parent
CACHE = Path(os.environ.get("BITLM_CACHE") or Path.home() / ".cache" / "bitlm") / "benchmark-peers"
LABELS = {
    "memmap": "numpy.memmap uint32",
    "memmap-rows": "the same, row by row",
    "shards": "shards (this project)",
    "datatrove": "datatrove .ds",
    "mosaic": "Mosaic MDS",
    "litdata": "litdata",
}
OUT = Console(width=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=4 * SHARD, help="rounded up to whole shards of 16.8M")
    parser.add_argument("--length", type=int, default=2048, help="L, tokens per row")
    parser.add_argument("--peers", type=Path, default=CACHE, help=f"default: {CACHE}")
    parser.add_argument("--only", nargs="+", choices=CONTENDERS, default=list(CONTENDERS))
    args = parser.parse_args()
    if {"mosaic", "litdata"} & set(args.only):
        install(args.peers)
    with tempfile.TemporaryDirectory() as folder:
        write_tokens(Path(folder, "tokens.npy"), -(-args.tokens // SHARD) * SHARD)
        found = {name: contend(name, folder, args) for name in args.only}
    show({name: figures for name, figures in found.items() if figures})


def write_tokens(path: Path, count: int) -> None:
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, END, count, dtype=np.uint32)
    tokens[rng.random(count) < 1 / DOCUMENT] = END
    tokens[SHARD - 1 :: SHARD] = END
    np.save(path, tokens)


def install(folder: Path) -> None:
    wanted = (HERE / "peers.txt").read_text()
    done = folder / "installed.txt"
    if done.exists() and done.read_text() == wanted:
        return
    OUT.print(f"installing peers into {folder}")
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--upgrade", "--target", str(folder)]
    subprocess.run([*command, "--requirement", str(HERE / "peers.txt")], check=True)
    done.write_text(wanted)


def contend(name: str, folder: str, args: argparse.Namespace) -> dict[str, Any] | None:
    """The figures of one contender; None, and the reason printed, where it does not run here."""
    OUT.print(f"{LABELS[name]} …")
    env = {**os.environ, "OMP_NUM_THREADS": "1", "BITLM_BENCH_PEERS": str(args.peers)}
    command = [sys.executable, str(HERE / "loader_contenders.py"), name, folder, str(args.length)]
    run = subprocess.run(command, env=env, capture_output=True, text=True)
    if run.returncode:
        OUT.print(f"{LABELS[name]} does not run here: {run.stderr.strip().splitlines()[-1]}", markup=False)
        return None
    return json.loads(run.stdout.splitlines()[-1])


def show(found: dict[str, dict[str, Any]]) -> None:
    table = Table("", "bytes/token", "with documents", "random rows", "memmap ÷ it", "sequential", "memmap ÷ it")
    base = found.get("memmap")
    for name, figures in found.items():
        cells = [LABELS[name], f"{figures['bytes_per_token']:.4f}", f"{figures['with_documents']:.4f}"]
        for key in ("random", "sequential"):
            cells += [_millions(figures[key]), f"{base[key] / figures[key]:.2f}" if base else ""]
        table.add_row(*cells)
    OUT.print(table)
    OUT.print("tokens per CPU second, all threads of the process counted")
    if ours := found.get("shards"):
        OUT.print(f"shards in training order, int64 batches of 64 rows: {_millions(ours['training'])}")
        OUT.print(f"verification of every byte, once per process: {_millions(ours['verified'])}")
        for name in ("datatrove", "mosaic", "litdata"):
            if name in found:
                ratios = [f"{ours[key] / found[name][key]:.1f}× {key}" for key in ("random", "sequential")]
                OUT.print(f"shards against {LABELS[name]}: {', '.join(ratios)}")


def _millions(rate: float) -> str:
    return f"{rate / 1e6:,.1f}M/s"


if __name__ == "__main__":
    main()
