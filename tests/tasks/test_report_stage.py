"""The report among Prefect's artifacts: in every run that asked for it, whether it was made there or before."""

import json
from datetime import UTC, datetime
from pathlib import Path

import pytest

from bitlm import storage
from bitlm.artifacts.record import Draft
from bitlm.artifacts.store import Store
from bitlm.config import configure
from bitlm.evaluate.table import rows
from bitlm.steps import Step
from bitlm_tasks import report
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
