"""Imports inside the package run one way: from a room to rooms below it, and never in a circle."""

import ast
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import sparseopt

PACKAGE = Path(sparseopt.__file__).parent
#: From top to bottom: a room may import what stands after it.
ROOMS = [
    "typing",
    "speedup",
    "optimizer",
    "flops",
    "methods",
    "pruning_at_init",
    "structured",
    "masks",
    "distributed",
    "distributions",
    "schedules",
    "utils",
]
MOST_ENTRIES = 13


def modules() -> dict[str, Path]:
    """Return the file of every module of the package, by the module's dotted name."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = ("sparseopt", *path.relative_to(PACKAGE).with_suffix("").parts)
        found[".".join(parts).removesuffix(".__init__")] = path
    return found


def imported_by(path: Path, known: dict[str, Path]) -> Iterator[str]:
    """Yield the modules of the package that a file imports, wherever in the file."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in known)
        elif isinstance(node, ast.ImportFrom) and node.module in known:
            for alias in node.names:
                submodule = f"{node.module}.{alias.name}"
                yield submodule if submodule in known else node.module


@pytest.fixture(scope="module")
def graph() -> dict[str, set[str]]:
    known = modules()
    return {name: set(imported_by(path, known)) for name, path in known.items()}


def room_of(module: str) -> str:
    return module.split(".")[1]


def test_top_level_has_only_the_rooms():
    entries = {path.stem for path in PACKAGE.iterdir() if path.is_dir() or path.suffix == ".py"} - {
        "__pycache__"
    }
    assert entries == {*ROOMS, "__init__"}
    assert len(entries) <= MOST_ENTRIES


def test_rooms_import_from_rooms_below_only(graph):
    upward = [
        f"{module} imports {imported}"
        for module, all_imported in graph.items()
        for imported in all_imported
        if "sparseopt" not in {module, imported}
        and ROOMS.index(room_of(imported)) < ROOMS.index(room_of(module))
    ]
    assert upward == []


def test_modules_import_each_other_in_no_circle(graph):
    try:
        order = list(TopologicalSorter(graph).static_order())
    except CycleError as error:
        pytest.fail(f"circle of imports: {error.args[1]}")
    assert len(order) == len(graph)


def folders_inside(graph: dict[str, set[str]], folder: str) -> dict[str, set[str]]:
    """Return which entries of a folder import which others of the same folder."""
    depth = folder.count(".") + 1
    arrows: dict[str, set[str]] = {}
    for module, all_imported in graph.items():
        if not module.startswith(f"{folder}."):
            continue
        entry = module.split(".")[depth]
        arrows.setdefault(entry, set())
        for imported in all_imported:
            if imported.startswith(f"{folder}.") and imported.split(".")[depth] != entry:
                arrows[entry].add(imported.split(".")[depth])
    return arrows


def test_entries_of_every_folder_import_each_other_in_no_circle(graph):
    folders = {name for name, path in modules().items() if path.name == "__init__.py"}
    for folder in sorted(folders):
        arrows = folders_inside(graph, folder)
        try:
            TopologicalSorter(arrows).prepare()
        except CycleError as error:
            pytest.fail(f"in {folder}: {error.args[1]}")
