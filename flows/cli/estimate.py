"""``bitlm plan tokens``: size and duration of the tokens stage, extrapolated from a measured sample of its source."""

import time
from collections.abc import Sequence
from typing import Any

from rich.table import Table

from bitlm.artifacts.record import Record
from bitlm.artifacts.store import Store
from bitlm.config import PipelineConfig
from bitlm.data.shards import tokenizer
from bitlm.data.shards.encode import Kit
from bitlm.data.shards.engine import TextEncoder
from bitlm.data.shards.estimate import Estimate, TextSource, estimate
from bitlm.data.shards.tokenizer import INFO_FILE, TOKENIZER_FILE, TokenizerInfo
from bitlm.data.sources.corpus import load_corpus
from bitlm.data.sources.held_out import HeldOut, held_out_table, load_held_out
from bitlm.data.sources.state import DOCSTRINGS, read_tokenizer, resolve, text_source
from bitlm.steps import Step, find_artifact
from bitlm_tasks.console import console as new_console
from bitlm_tasks.tokens import duration


def estimate_tokens(steps: Sequence[Step], config: PipelineConfig, root: str) -> Estimate | str:
    """The estimate for the tokens step among ``steps``, or why there is none yet."""
    store = Store(root)
    step = next(step for step in steps if step.stage == "tokens")
    corpus, tokenizer_record = (find_artifact(step.inputs[role], store) for role in ("corpus", "tokenizer"))
    if corpus is None and config.corpus.source == DOCSTRINGS:
        return "the corpus has not been made: `bitlm run corpus`, then plan again"
    if tokenizer_record is None and config.tokenizer.source == "train":
        return "the tokenizer has not been trained: `bitlm run tokenizer --upstream`, then plan again"
    started = time.process_time()
    kit = _kit(corpus, tokenizer_record, config, store)
    load_seconds = time.process_time() - started
    source = _source(corpus, step, config, store)
    return estimate(source, kit, load_seconds, config.tokens.execution.num_workers)


def show_estimate(result: Estimate | str) -> None:
    console = new_console()
    if isinstance(result, str):
        console.print(f"\nno estimate for tokens: {result}", soft_wrap=True)
        return
    table = Table(title="tokens, estimated", title_justify="left", show_header=False)
    rows = {
        "source": f"{result.files:,} files, {result.source_bytes / 1e9:,.3f} GB",
        "documents": f"{result.documents:,}",
        "text": f"{result.text_bytes / 1e9:,.3f} GB",
        "tokens": f"{result.tokens:,}",
        "output": f"{result.output_bytes / 1e9:,.3f} GB",
        "work": f"{result.core_seconds / 3600:,.3g} core-hours",
        "wall time": f"{duration(result.wall_seconds)} with {result.workers} workers",
    }
    for name, value in rows.items():
        table.add_row(name, value)
    console.print(table)
    console.print(
        f"measured on {result.sample_documents:,} documents ({result.sample_text_bytes / 1e6:.1f} MB) of "
        f"{result.sample_files} files; reading over a network is not in it",
        soft_wrap=True,
    )


def add_estimate(planned: list[dict[str, Any]], result: Estimate | str) -> list[dict[str, Any]]:
    """The plan as JSON, with the estimate, or why there is none, at the tokens step."""
    entry = {"reason": result} if isinstance(result, str) else result.as_json()
    return [step | {"estimate": entry} if step["step"].startswith("tokens/") else step for step in planned]


def _kit(corpus: Record | None, record: Record | None, config: PipelineConfig, store: Store) -> Kit:
    """Without a corpus there are no test documents to look for."""
    if record is None:
        data = read_tokenizer(config.tokenizer)
        info = tokenizer.describe(data, config.tokenizer)
    else:
        data = store.read_bytes(record, TOKENIZER_FILE)
        info = TokenizerInfo.model_validate_json(store.read_bytes(record, INFO_FILE))
    held_out = HeldOut(held_out_table([])) if corpus is None else load_held_out(store, corpus)
    return Kit(TextEncoder(data, config.tokens.execution.engine), info, held_out, config.corpus.validation_fraction)


def _source(corpus: Record | None, step: Step, config: PipelineConfig, store: Store) -> TextSource:
    """The files as the corpus artifact has them, or as the configured source has them now."""
    if corpus is None:
        files = resolve(text_source(config.corpus), step.inputs["corpus"].identity["source_state"]).files
        return TextSource(files, config.corpus.text_column, None)
    described = load_corpus(store, corpus)
    owned = described.kind == "owned"
    urls = [store.url(corpus.id, file.url) if owned else file.url for file in described.files]
    files = [file.model_copy(update={"url": url}) for file, url in zip(described.files, urls, strict=True)]
    return TextSource(files, described.text_column, described.id_column)
