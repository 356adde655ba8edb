"""Modules import only from the layers below them: the list is the architecture."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import natprec

ROOT = Path(natprec.__file__).parent

LAYERS: list[set[str]] = [
    {"errors", "units", "statistics", "memory", "native", "records"},
    {"roundings", "seeds"},
    {"formats"},
    {"options"},
    {"config", "schema"},
    {"marks"},
    {"arithmetic", "files", "own_files", "hooks", "progress", "parallel"},
    {"claims"},
    {"quantizers"},
    {"kernels"},
    {"information"},
    {"models"},
    {"texts"},
    {"evaluation.divergence"},  # KL, as the distortion of language models
    {"distortions"},
    {"staged"},
    {"sites"},
    {"transforms"},
    {"subject"},
    {"ir"},
    {"measurement"},
    {"solver"},
    {"rounding"},
    {"export"},
    {"runtime"},
    {"run.recipe", "run.request"},
    {"run.tokens"},
    {"run.resumable", "evaluation"},
    {"pipeline", "run"},
    {"api"},
    {"comparison", "inspection"},
    {"commands"},
    {"cli", ""},  # "" is natprec/__init__.py
    {"__main__"},
]
"""From the bottom up; a package stands for its modules, except those named apart. Imports within a
package are free, but no two modules may import each other in a circle."""


def module_name(file: Path) -> str:
    parts = file.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(file): file for file in sorted(ROOT.rglob("*.py"))}


def layer_name(module: str) -> str:
    """The longest name in `LAYERS` that a module is, or lies in."""
    names = {name for layer in LAYERS for name in layer}
    parts = module.split(".")
    for length in range(len(parts), 0, -1):
        if ".".join(parts[:length]) in names:
            return ".".join(parts[:length])
    raise AssertionError(f"natprec.{module} is in no layer: add it to LAYERS")


def height(module: str) -> int:
    return next(index for index, layer in enumerate(LAYERS) if layer_name(module) in layer)


def imports(source: str) -> Iterator[str]:
    """Our modules that are imported when this one is: not in functions, not for type checkers only."""

    def visit(body: list[ast.stmt]) -> Iterator[ast.stmt]:
        for node in body:
            if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
                yield from visit(node.orelse)
            elif not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                yield node
                for field in ("body", "orelse", "finalbody"):
                    yield from visit(getattr(node, field, []))

    for node in visit(ast.parse(source).body):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                yield inner if inner.removeprefix("natprec.") in MODULES else str(node.module)


def ours(file: Path) -> list[str]:
    names = (name for name in imports(file.read_text()) if name.partition(".")[0] == "natprec")
    return [name.removeprefix("natprec").removeprefix(".") for name in names]


def test_imports_point_downwards() -> None:
    against = [
        f"natprec.{module} imports natprec.{other}"
        for module, file in MODULES.items()
        for other in ours(file)
        if layer_name(module) != layer_name(other) and height(other) >= height(module)
    ]
    assert not against


def test_no_circles() -> None:
    graph = {module: set(ours(file)) - {module} for module, file in MODULES.items()}
    while leaves := {module for module, others in graph.items() if not others & graph.keys()}:
        graph = {module: others for module, others in graph.items() if module not in leaves}
    assert not graph, f"modules that import each other, or those that do: {sorted(graph)}"


def test_every_layer_exists() -> None:
    for layer in LAYERS:
        assert layer <= MODULES.keys()


def test_reader_of_imports() -> None:
    source = """
from __future__ import annotations
import json
from natprec import pipeline
from natprec.formats import Format
if TYPE_CHECKING:
    from natprec.cli import main
try:
    import natprec.errors
except ImportError:
    pass
class A:
    import natprec.files
    def method(self):
        from natprec.api import apply
"""
    found = [name for name in imports(source) if name.startswith("natprec")]
    assert found == ["natprec.pipeline", "natprec.formats", "natprec.errors", "natprec.files"]
    assert height("pipeline") > height("measurement.sweep") > height("evaluation.divergence")
    assert height("evaluation.verify") > height("rounding.gptq")
