"""Deployments on a Prefect worker: of the whole pipeline and of one stage."""

import json
import shutil
import subprocess

import httpx
from chain import BIN, ONE_OF_EACH, PROJECT, SETTINGS, STEPS, complete, environment, running


def test_by_a_deployment_on_a_prefect_worker(copy, tmp_path, prefect_url):
    env = environment(tmp_path, PREFECT_API_URL=prefect_url, PREFECT_WORKER_QUERY_SECONDS="1")
    prefect = str(BIN / "prefect")

    def ask(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [prefect, *words], env=env, cwd=PROJECT, capture_output=True, text=True, timeout=500, check=False
        )

    for step in ONE_OF_EACH:
        shutil.rmtree(copy / f"{step}@v1")
    assert ask("work-pool", "create", "--type", "process", "bitlm").returncode == 0
    deployed = ask("--no-prompt", "deploy", "--all")
    assert deployed.returncode == 0, deployed.stdout + deployed.stderr
    log = tmp_path / "worker.log"
    with running([prefect, "worker", "start", "--pool", "bitlm"], log, env=env):
        config = ["-p", f"config={json.dumps({'preset': 'tiny', **SETTINGS})}", "-p", f"root={json.dumps(str(copy))}"]
        run = ask("deployment", "run", "pipeline/tiny", *config, "--watch")
        assert run.returncode == 0, run.stdout[-2000:] + log.read_text()[-4000:]
        again = ask("deployment", "run", "tokens/default", *config, "--watch")
        assert again.returncode == 0, again.stdout[-2000:]
        wrong = ask("deployment", "run", "pipeline/tiny", "-p", 'config={"pretrain": {"steps": "many"}}', "--watch")
        assert wrong.returncode == 1
    artifacts = httpx.post(f"{prefect_url}/artifacts/filter", json={}).json()
    assert {a["key"] for a in artifacts} >= {"rouge", "report", "report-tables", "pretrain-tiny-diffusion"}
    assert any(a["type"] == "progress" for a in artifacts)
    assert complete(str(copy)) == sorted(f"{step}@v1" for step in STEPS)
