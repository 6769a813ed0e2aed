"""Deployments on a Prefect worker, which finished the root that all tests share."""

from chain import STEPS, complete


def test_the_pipeline_goes_on_where_the_command_line_was_interrupted(finished):
    assert finished.deployment["codes"] == {"pipeline": 0, "stage": 0, "wrong": 1}
    assert complete(str(finished.root)) == [f"{step}@v1" for step in sorted(STEPS)]
    assert not (finished.root / ".work").exists()


def test_what_the_prefect_server_shows(finished):
    assert set(finished.deployment["keys"]) >= {"rouge", "report", "report-tables", "pretrain-tiny-diffusion"}
    assert "progress" in finished.deployment["types"]
