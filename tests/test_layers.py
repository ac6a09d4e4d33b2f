"""The order of the house: a module imports only from rows below its own, and none grows too large to read."""
from __future__ import annotations

import ast
from pathlib import Path

import pytest

import shmstack

PACKAGE = Path(shmstack.__file__).parent
MODULES = sorted(PACKAGE.rglob("*.py"))

# Top first. A row is parted into units, which do not import each other; within a unit modules may.
ROWS = [
    [{"run", "cli", "_show", "profiles", "__main__", "_site", "_build", "pytest_plugin"}],
    [{"__init__", "socket", "select", "selectors", "connection", "_connection", "_queue", "_socket", "_ending", "_modes",
     "_calls", "_arguments", "_callers", "jit", "nocopy"}],
    [{"stack"}, {"views"}],
    [{"tcp"}, {"nic"}],
    [{"ring"}],
    [{"shm"}],
    [{"_jit", "_native", "_digest", "errors", "options", "_option"}],
]


def _place(first: str) -> tuple[int, int]:
    for row, units in enumerate(ROWS):
        for unit, names in enumerate(units):
            if first in names:
                return row, unit
    raise AssertionError(f"shmstack/{first} has no row; add it to ROWS")


def _first(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def _imports(path: Path) -> set[str]:
    """Return the names right below shmstack that the file imports anywhere, "__init__" for the package itself."""
    package = ["shmstack", *path.relative_to(PACKAGE).parts[:-1]]
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            full = [alias.name.split(".") for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[:len(package) - node.level + 1] if node.level else []
            base = base + node.module.split(".") if node.module else base
            full = [base + [alias.name] for alias in node.names]
        else:
            continue
        for parts in full:
            if parts[0] == "shmstack":
                below = parts[1] if len(parts) > 1 else "__init__"
                exists = (PACKAGE / below).is_dir() or (PACKAGE / f"{below}.py").exists()
                found.add(below if exists else "__init__")
    return found


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_module_imports_only_from_rows_below(path):
    row, unit = _place(_first(path))
    for name in _imports(path):
        other_row, other_unit = _place(name)
        below = other_row > row or (other_row, other_unit) == (row, unit)
        assert below, f"{path.relative_to(PACKAGE)} (row {row}) imports shmstack.{name} (row {other_row})"


def test_imports_in_functions_are_seen(tmp_path, monkeypatch):
    monkeypatch.setitem(globals(), "PACKAGE", tmp_path)
    (tmp_path / "ring").mkdir()
    (tmp_path / "shm").mkdir()
    file = tmp_path / "ring" / "x.py"
    file.write_text("def f():\n    from shmstack import errors, shm\n    from ..shm import layout\n"
                    "    import shmstack.ring\n")
    assert _imports(file) == {"__init__", "shm", "ring"}


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_module_and_its_functions_are_short(path):
    text = path.read_text()
    assert len(text.splitlines()) <= 300
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            lines = (node.end_lineno or node.lineno) - node.lineno + 1
            assert lines <= 60, f"{node.name} has {lines} lines"
