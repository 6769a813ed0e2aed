"""``make clean`` removes what make, pip and the tools have left, and nothing that a user has made."""

import shutil
import subprocess
from pathlib import Path

PROJECT = Path(__file__).parents[1]
KEPT = ("artifacts/corpus/tiny@v1/artifact.json", "artifacts/.work/x", "bitlm/steps.py", "data/text.parquet", "runs/a")
REMOVED = (".venv/installed", "build/lib/x", "bitlm.egg-info/PKG-INFO", ".ruff_cache/x", "bitlm/data/__pycache__/a.pyc")


def test_clean_keeps_artifacts_and_sources(tmp_path: Path) -> None:
    shutil.copy(PROJECT / "Makefile", tmp_path)
    for tree in ("tasks", "flows", "tests", "benchmarks"):
        (tmp_path / tree).mkdir()
    for name in KEPT + REMOVED:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("x")
    subprocess.run(["make", "clean"], cwd=tmp_path, check=True, capture_output=True)
    left = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    assert left == {"Makefile", *KEPT}
    assert not (tmp_path / ".venv").exists()
