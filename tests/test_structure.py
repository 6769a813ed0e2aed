"""Imports go one way: flows → tasks → bitlm, inside bitlm along the list of packages, and never in a circle.

Every import statement counts, also inside functions and under TYPE_CHECKING.
"""

import ast
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

PROJECT = Path(__file__).parents[1]

# A package may import those before it.
TREES = {"bitlm": "bitlm", "bitlm_tasks": "tasks", "bitlm_flows": "flows"}  # name when imported → folder
PACKAGES = (
    "errors",
    "text",
    "config",
    "storage",
    "artifacts",
    "packing",
    "codes",
    "devices",
    "batch",
    "diffusion",
    "generation",
    "model",
    "data",
    "train",
    "evaluate",
    "steps",
)


class Import(NamedTuple):
    """``importer`` and ``imported`` are modules; a name that is imported from a package counts as the package."""

    importer: str
    imported: str
    place: str

    def __str__(self) -> str:
        return f"{self.place}: {self.importer} imports {self.imported}"


def _modules(root: Path) -> dict[str, Path]:
    """Dotted name → file."""
    modules = {}
    for tree, folder in TREES.items():
        for path in sorted((root / folder).rglob("*.py")):
            parts = (tree, *path.relative_to(root / folder).with_suffix("").parts)
            modules[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return modules


def _imports(root: Path) -> list[Import]:
    modules = _modules(root)
    imports = (
        Import(name, imported, f"{path.relative_to(root)}:{line}")
        for name, path in modules.items()
        for imported, line in _names(ast.parse(path.read_text(encoding="utf8")), modules)
    )
    return list(dict.fromkeys(imports))


def _names(tree: ast.Module, modules: dict[str, Path]) -> Iterator[tuple[str, int]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: a relative import"
            for alias in node.names:
                submodule = f"{node.module}.{alias.name}"
                yield (submodule if submodule in modules else str(node.module)), node.lineno


def _against_the_trees(imports: list[Import]) -> list[Import]:
    order = tuple(TREES)
    return [i for i in imports if _place(i.imported, order, 0) > _place(i.importer, order, 0)]


def _against_the_packages(imports: list[Import]) -> list[Import]:
    inside = [i for i in imports if i.importer.startswith("bitlm.") and i.imported.startswith("bitlm.")]
    return [i for i in inside if _place(i.imported, PACKAGES, 1) > _place(i.importer, PACKAGES, 1)]


def _place(module: str, order: tuple[str, ...], depth: int) -> int:
    """Where a module's tree (depth 0) or package (depth 1) stands in the order; -1 for a foreign one."""
    part = module.split(".")[depth]
    return order.index(part) if part in order else -1


def _circles(imports: list[Import]) -> list[list[Import]]:
    """Each import that closes a circle, with those that lead back: one circle for each such import."""
    edges: dict[str, list[Import]] = {}
    for one in imports:
        edges.setdefault(one.importer, []).append(one)
    circles = []
    state: dict[str, str] = {}
    path: list[Import] = []

    def visit(module: str) -> None:
        state[module] = "open"
        for one in edges.get(module, []):
            path.append(one)
            if state.get(one.imported) == "open":
                first = next(i for i, step in enumerate(path) if step.importer == one.imported)
                circles.append(path[first:])
            elif one.imported in edges and one.imported not in state:
                visit(one.imported)
            path.pop()
        state[module] = "done"

    for module in edges:
        if module not in state:
            visit(module)
    return circles


@pytest.fixture(scope="module")
def imports() -> list[Import]:
    return _imports(PROJECT)


def test_every_module_of_bitlm_has_a_place_in_the_order() -> None:
    names = {name.split(".")[1] for name in _modules(PROJECT) if name.startswith("bitlm.")}
    assert names == set(PACKAGES)


def test_flows_import_tasks_and_tasks_import_the_library(imports: list[Import]) -> None:
    assert not [str(one) for one in _against_the_trees(imports)]


def test_a_package_of_the_library_imports_only_those_before_it(imports: list[Import]) -> None:
    assert not [str(one) for one in _against_the_packages(imports)]


def test_no_modules_import_each_other_in_a_circle(imports: list[Import]) -> None:
    assert not [[str(one) for one in circle] for circle in _circles(imports)]


def test_the_library_needs_neither_prefect_nor_ray(imports: list[Import]) -> None:
    foreign = [one for one in imports if one.imported.split(".")[0] in ("prefect", "ray")]
    assert foreign, "tasks and flows use both"
    assert not [str(one) for one in foreign if one.importer.split(".")[0] == "bitlm"]


def test_every_package_is_installed() -> None:
    setup = tomllib.loads((PROJECT / "pyproject.toml").read_text(encoding="utf8"))["tool"]["setuptools"]
    modules = _modules(PROJECT)
    assert setup["package-dir"] == TREES
    assert sorted(setup["packages"]) == sorted(name for name, path in modules.items() if path.stem == "__init__")


def test_each_kind_of_offence_is_found(tmp_path: Path) -> None:
    sources = {
        "bitlm/codes.py": "def f():\n    from bitlm.model.head import Head",
        "bitlm/model/__init__.py": "",
        "bitlm/model/head.py": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from bitlm import codes",
        "bitlm/errors.py": "import bitlm_tasks.run",
        "tasks/run.py": "from bitlm.model import head",
        "flows/cli.py": "from bitlm_tasks import run\nimport ray",
    }
    for name, source in sources.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(source)
    imports = _imports(tmp_path)
    assert [str(one) for one in _against_the_trees(imports)] == [
        "bitlm/errors.py:1: bitlm.errors imports bitlm_tasks.run"
    ]
    upwards = "bitlm/codes.py:2: bitlm.codes imports bitlm.model.head"
    assert [str(one) for one in _against_the_packages(imports)] == [upwards]
    assert [[str(one) for one in circle] for circle in _circles(imports)] == [
        [upwards, "bitlm/model/head.py:3: bitlm.model.head imports bitlm.codes"]
    ]
