"""Running the data stages of a small pipeline in a test."""

import hashlib
from pathlib import Path

from bitlm.artifacts.record import Record
from bitlm.artifacts.store import Store
from bitlm.config import configure
from bitlm.steps import steps
from bitlm_tasks import corpus, tokenizer, tokens
from bitlm_tasks.run import Run, run_step

BUILDS = {"corpus": corpus.build, "tokenizer": tokenizer.build, "tokens": tokens.build}


def run_stages(root: Path, *settings: str, last: str = "tokens") -> dict[str, Record]:
    """Records of the stages up to ``last``, made below ``root`` or reused."""
    config = configure("tiny", settings)
    run = Run(Store(str(root)), config)
    made = {}
    for step in steps(config):
        if step.stage in BUILDS:
            made[step.stage] = run_step(step, run, BUILDS[step.stage]).record
        if step.stage == last:
            break
    return made


def digests(record: Record) -> dict[str, str]:
    return {entry.path: entry.sha256 for entry in record.files}


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
