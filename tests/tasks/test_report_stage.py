"""What Prefect is told: the report in every run that asked for it, new or reused, and foreign text as it is."""

import io
import json
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from bitlm import storage
from bitlm.artifacts.record import Draft
from bitlm.artifacts.store import Store
from bitlm.artifacts.work import Work
from bitlm.config import configure
from bitlm.evaluate.table import rows
from bitlm.steps import Step
from bitlm_tasks import report
from bitlm_tasks import run as steps
from bitlm_tasks.run import Run, run_step


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> dict[str, object]:
    found: dict[str, object] = {}
    for kind in ("table", "markdown"):
        monkeypatch.setattr(
            report, f"create_{kind}_artifact", lambda value, key, description: found.update({key: value})
        )
    monkeypatch.setattr(report, "create_link_artifact", lambda href, key, **_: found.update({key: href}))
    return found


def test_a_reused_report_is_recorded_as_a_new_one(
    tmp_path: Path, recorded: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(str(tmp_path))
    step = Step("report", "tiny", {"preset": "tiny"}, {}, {})
    work = store.begin("report", "tiny", step.fingerprint)
    table = rows([])  # the article's rows alone
    results = {"title": "T", "rows": [row.model_dump(mode="json") for row in table]}
    pages = {"results.json": json.dumps(results), "report.md": "# tables", "report.html": "<p>"}
    for name, text in pages.items():
        storage.write_atomic(storage.join(work.out, name), text.encode())
    now = datetime(2026, 1, 2, tzinfo=UTC)
    made = store.commit(work, Draft("report", "tiny", step.fingerprint, step.format, step.identity, {}, {}, {}, now))
    run = Run(store, configure())
    outcome = run_step(step, run, report.build)
    assert (outcome.record.id, outcome.reused) == (made.id, True)
    report.show(outcome.record, run)
    assert not recorded  # nothing records outside of a task
    monkeypatch.setattr(report.TaskRunContext, "get", lambda: object())
    report.show(outcome.record, run)
    assert recorded["report-tables"] == "# tables"
    assert recorded["report"] == f"file://{tmp_path}/report/tiny@v1/report.html"
    assert [row["system"] for row in recorded["rouge"]] == [row.system for row in table]


@pytest.mark.parametrize(
    ("url", "link"),
    [
        ("/data/a b/r#1?[x](y)%20/é", "file:///data/a%20b/r%231%3F%5Bx%5D%28y%29%2520/%C3%A9"),
        ("file:///data/\udcff", "file:///data/%FF"),
        ("s3://bucket/a b)/report/tiny@v1", "s3://bucket/a%20b%29/report/tiny@v1"),
    ],
)
def test_a_link_leads_to_its_path(url: str, link: str) -> None:
    assert report._href(url) == link


def test_foreign_text_is_shown_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hostile = "[INST] `x`|[/q] <b>\x1b[1m"
    step = Step("corpus", "tiny", {"source": "old"}, {}, {})
    written: dict[str, object] = {}
    monkeypatch.setattr(steps, "create_markdown_artifact", lambda text, **_: written.update(markdown=text))
    monkeypatch.setattr(steps.TaskRunContext, "get", lambda: object())
    store = Store(str(tmp_path / "r[/q]`|`"))

    def build(_step: Step, _run: Run, work: Work) -> dict[str, object]:
        storage.write_atomic(storage.join(work.out, "x"), b"x")
        return {"source": hostile, "kind": "x"}

    for source in ("old", hostile):
        run = Run(store, configure())
        run.console.file = io.StringIO()
        run_step(replace(step, identity={"source": source}), run, build)
    told = run.console.file.getvalue()
    shown = r"[INST] `x`|[/q] <b>\x1b[1m"
    assert f"corpus.source: old → {shown}" in " ".join(told.split())
    assert f"source {shown} · kind x" in told
    lines = str(written["markdown"]).splitlines()
    assert f"``{tmp_path}/r[/q]`|`/corpus/tiny@v2``" in lines
    assert r"- corpus.source: old → \[INST\] \`x\`\|\[/q\] \<b\>\\x1b\[1m" in lines
    assert r"| source | \[INST\] \`x\`\|\[/q\] \<b\>\\x1b\[1m |" in lines
