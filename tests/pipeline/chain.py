"""A pipeline so small that it takes a minute, run as users run it: as a process of its own."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import psutil

from bitlm.artifacts.store import Store

PROJECT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent

SETTINGS: dict[str, Any] = {
    "corpus": {"max_documents": 2000},
    "tokenizer": {"vocab_size": 512},
    "tokens": {"unit_bytes": 200_000},
    "model": {
        "hidden_size": 32,
        "num_layers": 2,
        "num_heads": 2,
        "num_kv_heads": 1,
        "head_dim": 16,
        "ffn_size": 64,
        "head": {"num_layers": 1, "head_dim": 16},
    },
    "prompt": {"max_prompt_tokens": 32, "max_summary_tokens": 8},
    "pretrain": {
        "sequence_length": 64,
        "batch_size": 4,
        "steps": 60,  # time to be interrupted
        "warmup_steps": 1,
        "validate_every": 30,
        "validation_batches": 1,
        "execution": {"cpus_per_worker": 1, "checkpoint_every": 5},
    },
    "finetune": {
        "batch_size": 4,
        "steps": 4,
        "warmup_steps": 1,
        "validate_every": 4,
        "validation_batches": 1,
        "execution": {"cpus_per_worker": 1, "checkpoint_every": 2},
    },
    # The article's sampler, which so needs no rows of its own.
    "evaluate": {
        "examples": 8,
        "brier_blocks": 12,
        "sampler": "descent",
        "stagger": 0,
        "bootstrap_samples": 50,
        "execution": {"cpus_per_actor": 1},
    },
}

STEPS = [
    "corpus/tiny",
    "tokenizer/tiny",
    "tokens/tiny",
    "pretrain/tiny-lm-start",
    "pretrain/tiny-diffusion",
    "pretrain/tiny-lm",
    "finetune/tiny-diffusion",
    "finetune/tiny-lm",
    "evaluate/tiny-lead",
    "evaluate/tiny-diffusion-pretrained",
    "evaluate/tiny-diffusion-finetuned",
    "evaluate/tiny-lm-pretrained",
    "evaluate/tiny-lm-finetuned",
    "report/tiny",
]

# One step of each kind: Ray tasks, Ray Train, Ray Data, no Ray. A finished root without these is made whole again by
# making just these.
ONE_OF_EACH = ["tokens/tiny", "finetune/tiny-diffusion", "evaluate/tiny-diffusion-finetuned", "report/tiny"]


def assignments(settings: dict[str, Any]) -> list[str]:
    """The settings as command-line arguments."""
    words = []
    for key, value in _flat(settings, ""):
        words += ["--set", f"{key}={json.dumps(value)}"]
    return words


def environment(home: Path, **more: str) -> dict[str, str]:
    """The caller's environment with a Prefect home of its own, so that runs of the user are not touched."""
    env = {name: value for name, value in os.environ.items() if not name.startswith(("PREFECT_", "RAY_"))}
    env |= {"PREFECT_HOME": str(home / "prefect"), "PREFECT_SERVER_ANALYTICS_ENABLED": "false", "DO_NOT_TRACK": "1"}
    env |= {"PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}", "RAY_USAGE_STATS_ENABLED": "0"}
    env |= {name: value for name, value in os.environ.items() if name.startswith("RAY_TRAIN_")}
    return env | more


def bitlm(
    home: Path, *words: str, settings: dict[str, Any] | None = None, **more: str
) -> subprocess.CompletedProcess[str]:
    """Run the command line to its end."""
    command = [str(BIN / "bitlm"), *words, *(assignments(settings) if settings else [])]
    return subprocess.run(
        command, env=environment(home, **more), capture_output=True, text=True, timeout=500, cwd=home, check=False
    )


def interrupted(home: Path, *words: str, settings: dict[str, Any], checkpoints: str) -> dict[str, Any]:
    """Run the command line until there is a checkpoint, a file that ``checkpoints`` matches below ``home``, and press
    Ctrl-C. What then happened: the exit code, after how many seconds, and the processes that are left."""
    command = [str(BIN / "bitlm"), *words, *assignments(settings)]
    with running(command, home / "interrupted.log", env=environment(home), cwd=home) as run:
        while not any(home.glob(checkpoints)):
            assert run.poll() is None, (home / "interrupted.log").read_text()[-3000:]
            time.sleep(0.02)
        processes = psutil.Process(run.pid).children(recursive=True)
        began = time.monotonic()
        os.killpg(run.pid, signal.SIGINT)
        code = run.wait(timeout=60)
        seconds = time.monotonic() - began
    _, alive = psutil.wait_procs(processes, timeout=3)
    return {"code": code, "seconds": seconds, "alive": [str(process) for process in alive]}


@contextmanager
def running(command: list[str], log: Path, **options: Any) -> Iterator[subprocess.Popen]:
    """A process that prints to ``log``. It and its children are gone after the context."""
    with log.open("w") as out:
        process = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT, start_new_session=True, **options)
        try:
            yield process
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGTERM)
            try:
                process.wait(timeout=15)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


def deployed(home: Path, api: str, root: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """Finish the root by a deployment of the pipeline on a Prefect worker, then run deployments of one stage and with
    a wrong setting. The exit codes of the runs, and what the Prefect server at ``api`` shows under Artifacts."""
    env = environment(home, PREFECT_API_URL=api, PREFECT_WORKER_QUERY_SECONDS="1")
    prefect, log = str(BIN / "prefect"), home / "worker.log"

    def ask(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [prefect, *words], env=env, cwd=PROJECT, capture_output=True, text=True, timeout=500, check=False
        )

    def run(name: str, config: dict[str, Any]) -> subprocess.CompletedProcess[str]:
        words = ["-p", f"config={json.dumps(config)}", "-p", f"root={json.dumps(str(root))}", "--watch"]
        return ask("deployment", "run", name, *words)

    for words in (["work-pool", "create", "--type", "process", "bitlm"], ["--no-prompt", "deploy", "--all"]):
        asked = ask(*words)
        assert asked.returncode == 0, asked.stdout + asked.stderr
    with running([prefect, "worker", "start", "--pool", "bitlm"], log, env=env):
        pipeline = run("pipeline/tiny", {"preset": "tiny", **settings})
        assert pipeline.returncode == 0, pipeline.stdout[-2000:] + log.read_text()[-4000:]
        stage = run("tokens/default", {"preset": "tiny", **settings})
        wrong = run("pipeline/tiny", {"pretrain": {"steps": "many"}})
    shown = httpx.post(f"{api}/artifacts/filter", json={}).json()
    codes = {"pipeline": pipeline.returncode, "stage": stage.returncode, "wrong": wrong.returncode}
    return {"codes": codes, "keys": [one["key"] for one in shown], "types": [one["type"] for one in shown]}


def complete(root: str) -> list[str]:
    """The ids of all artifacts of a root, every byte of which is verified."""
    store = Store(root)
    records = store.records()
    for record in records:
        store.verify(record)
    return [record.id for record in records]


def _flat(tree: dict[str, Any], prefix: str) -> list[tuple[str, Any]]:
    found = []
    for key, value in tree.items():
        found += _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else [(prefix + key, value)]
    return found
