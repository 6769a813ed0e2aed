"""The report stage: one page, its tables as Markdown, all of it as JSON, and Prefect artifacts."""

import json
import os
from typing import Any
from urllib.parse import quote

from prefect.artifacts import create_link_artifact, create_markdown_artifact, create_table_artifact
from prefect.context import TaskRunContext

from bitlm import storage
from bitlm.artifacts.record import Record
from bitlm.artifacts.work import Work
from bitlm.evaluate import report, table
from bitlm.evaluate.results import Results, collect, subjects
from bitlm.steps import STAGES, Step
from bitlm.text import markdown
from bitlm_tasks.run import Run, stage_task


def build(step: Step, run: Run, work: Work) -> dict[str, Any]:
    evaluations = _inputs(step, run, "evaluate")
    trained = _inputs(step, run, "pretrain") + _inputs(step, run, "finetune")
    shown = subjects(run.store, evaluations, trained)
    results = collect(run.store, shown, run.config.report, step.identity["preset"])
    pages = {
        "report.html": report.render_html(results, shown.ancestry, list(STAGES)),
        "report.md": report.render_markdown(results),
        "results.json": json.dumps(results, indent=1, ensure_ascii=False),
    }
    for name, text in pages.items():
        storage.write_atomic(storage.join(work.out, name), text.encode())
    return {"systems": len(evaluations), "examples": max(row["examples"] or 0 for row in results["rows"])}


def show(record: Record, run: Run) -> None:
    """Record the report, new or reused, as Prefect artifacts if this is a task run: the ROUGE table, all tables as
    Markdown, and a link to the page.
    """
    if TaskRunContext.get() is None:
        return
    results: Results = json.loads(_read(record, run, "results.json"))
    rows = [table.Row.model_validate(row) for row in results["rows"]]
    create_table_artifact(table.plain(rows), key="rouge", description=f"{table.ARTICLE_NOTE} {table.LEAD_NOTE}")
    title = markdown(results["title"])
    create_markdown_artifact(_read(record, run, "report.md"), key="report-tables", description=title)
    href = _href(run.store.url(record.id, "report.html"))
    create_link_artifact(href, link_text=markdown(record.id), key="report", description="The report of the pipeline")


def _href(url: str) -> str:
    """A link, in which every character of a path that has a meaning in links is quoted."""
    if not storage.is_local(url):
        return quote(url, safe=":/@")
    return "file://" + quote(os.fsencode(storage.local_path(url)), safe="/@")


def _read(record: Record, run: Run, name: str) -> str:
    return run.store.read_bytes(record, name).decode()


def _inputs(step: Step, run: Run, prefix: str) -> list[Record]:
    return [run.input(step, role) for role in step.inputs if role.startswith(f"{prefix}:")]


task = stage_task("report", build, after=show)
