"""Modules import only from the layers below them, inside functions too: the list is the architecture."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import natprec

ROOT = Path(natprec.__file__).parent

LAYERS: list[str] = [
    "errors",
    "tasks",
    "native",
    "utils",
    "formats",
    "gpu",
    "engines",
    "costs",
    "roundings",
    "config",
    "quantizers",
    "distortions",
    "models",
    "data",
    "transforms",
    "measurement",
    "solver",
    "rounding",
    "checkpoints",
    "runtime",
    "timing",
    "serving",
    "evaluation",
    "pipeline",
    "inspection",
    "comparison",
    "benchmark",
    "energy",
    "reporting",
    "publishing",
    "commands",
    "cli",
    "",
    "__main__",
]
"""From the bottom up, one folder or file of the root each; "" is natprec/__init__.py."""

FOR_NOTEBOOKS = {("measurement.measurement", "solver.solve"), ("solver.plan", "pipeline.api")}
"""`Measurement.solve` and `Plan.apply` call later folders: for people in notebooks, and the only two that do."""


def module_name(file: Path) -> str:
    parts = file.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(file): file for file in sorted(ROOT.rglob("*.py"))}


def height(module: str) -> int:
    """Of the layer that a module is, or lies in."""
    layer = module.partition(".")[0]
    assert layer in LAYERS, f"natprec.{module} is in no layer: add {layer!r} to LAYERS"
    return LAYERS.index(layer)


def imports(source: str) -> Iterator[str]:
    """Our modules that a module imports, at its top or when a function runs; not those for type checkers only."""

    def visit(body: list[ast.stmt]) -> Iterator[ast.stmt]:
        for node in body:
            if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
                yield from visit(node.orelse)
                continue
            yield node
            for field in ("body", "orelse", "finalbody"):
                yield from visit(getattr(node, field, []))
            for handler in getattr(node, "handlers", []):
                yield from visit(handler.body)

    for node in visit(ast.parse(source).body):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                yield inner if inner.removeprefix("natprec.") in MODULES else str(node.module)


def ours(module: str) -> set[str]:
    """What a module imports of natprec, but for the two exceptions."""
    names = (name for name in imports(MODULES[module].read_text()) if name.partition(".")[0] == "natprec")
    found = {name.removeprefix("natprec").removeprefix(".") for name in names}
    return {name for name in found if (module, name) not in FOR_NOTEBOOKS} - {module}


def leftover(graph: dict[str, set[str]]) -> set[str]:
    """What lies on a circle of a graph, or leads to one."""
    while leaves := {name for name, others in graph.items() if not others & graph.keys()}:
        graph = {name: others for name, others in graph.items() if name not in leaves}
    return set(graph)


def test_imports_point_downwards() -> None:
    against = [
        f"natprec.{module} imports natprec.{other}"
        for module in MODULES
        for other in ours(module)
        if module.partition(".")[0] != other.partition(".")[0] and height(other) >= height(module)
    ]
    assert not against


def test_no_circles_among_files() -> None:
    assert not leftover({module: ours(module) for module in MODULES})


def test_no_circles_among_folders() -> None:
    """A folder inside another is a part of it: the two may import each other, as files of one folder may."""
    graph: dict[str, set[str]] = {}
    for module in MODULES:
        folder = MODULES[module].parent.relative_to(ROOT).as_posix()
        others = {MODULES[other].parent.relative_to(ROOT).as_posix() for other in ours(module) if other in MODULES}
        apart = {other for other in others if not f"{other}/".startswith(f"{folder}/")}
        graph.setdefault(folder, set()).update(other for other in apart if not f"{folder}/".startswith(f"{other}/"))
    graph.pop(".")  # the root's files are layers of their own
    assert not leftover({folder: others - {"."} for folder, others in graph.items()})


def test_the_exceptions_are_needed() -> None:
    for module, other in FOR_NOTEBOOKS:
        names = {name.removeprefix("natprec.") for name in imports(MODULES[module].read_text())}
        assert other in names


def test_every_layer_exists() -> None:
    folders = {path.name for path in ROOT.iterdir() if path.is_dir() and any(path.glob("*.py"))}
    assert folders <= set(LAYERS)
    assert set(LAYERS) <= MODULES.keys()


def test_reader_of_imports() -> None:
    source = """
from __future__ import annotations
import json
from natprec.formats import Format
if TYPE_CHECKING:
    from natprec.cli import main
try:
    import natprec.errors
except ImportError:
    from natprec import config
class A:
    import natprec.utils
    def method(self):
        from natprec.pipeline.api import apply
"""
    found = {name for name in imports(source) if name.startswith("natprec")}
    assert found == {
        "natprec.formats", "natprec.errors", "natprec.config", "natprec.utils", "natprec.pipeline.api",
    }  # fmt: skip
