"""What is installed: only names that begin with ``bitlm``, so that nothing of a user's hides it."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from zipfile import ZipFile

PROJECT = Path(__file__).parents[1]
TREES = ("bitlm", "tasks", "flows")
WHERE = """
import json, bitlm.steps, bitlm_tasks.spread, bitlm_flows.selection
print(json.dumps([bitlm.steps.__file__, bitlm_tasks.spread.__file__, bitlm_flows.selection.__file__]))
"""


def _copy(target: Path) -> Path:
    for tree in TREES:
        shutil.copytree(PROJECT / tree, target / tree, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(PROJECT / name, target / name)
    return target


def _python(folder: Path, path: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Python called in ``folder``, with ``path`` before what is installed."""
    env = os.environ | {"PYTHONPATH": str(path)}
    return subprocess.run([sys.executable, *words], cwd=folder, env=env, capture_output=True, text=True, check=False)


def test_a_wheel_takes_no_common_name(tmp_path: Path) -> None:
    project = _copy(tmp_path / "project")
    build = "import sys, setuptools.build_meta as build; build.build_wheel(sys.argv[1])"
    built = _python(project, project, "-c", build, str(tmp_path))
    assert built.returncode == 0, built.stderr
    (wheel,) = tmp_path.glob("*.whl")
    packed = {name for name in ZipFile(wheel).namelist() if ".dist-info/" not in name}
    names = {"bitlm": "bitlm", "tasks": "bitlm_tasks", "flows": "bitlm_flows"}
    sources = {
        "/".join((names[tree], *path.relative_to(project / tree).parts))
        for tree in TREES
        for path in (project / tree).rglob("*")
        if path.is_file()
    }
    assert packed == sources


def test_files_of_the_same_names_as_our_folders_hide_nothing(tmp_path: Path) -> None:
    for name in ("tasks", "flows"):
        (tmp_path / f"{name}.py").write_text("raise ImportError('a file of the user')")
        (tmp_path / name).mkdir()
    found = _python(tmp_path, tmp_path, "-c", WHERE)
    assert found.returncode == 0, found.stderr


def test_a_copy_of_the_tree_on_the_path_is_run_as_a_whole(tmp_path: Path) -> None:
    """As in a Ray job with --working-dir, whose library is the copy's."""
    copy = _copy(tmp_path / "copy")
    found = _python(tmp_path, copy, "-c", WHERE)
    assert found.returncode == 0, found.stderr
    files = ["bitlm/steps.py", "tasks/spread.py", "flows/selection.py"]
    assert json.loads(found.stdout) == [str(copy / file) for file in files]
