"""Do the tests see it when the code is wrong? One small change at a time, in what decides whether a file is believed.

    python scripts/mutants.py                             # all mutants of all modules; hours
    python scripts/mutants.py --sample 40 --only schema   # 40 of a module, drawn at random
    python scripts/mutants.py --state mutants.json        # goes on where it was stopped

A mutant has one comparison, operator, number or condition of a module changed, or an `if` or `raise` taken out. Texts
of messages and types stay as they are. The tests that cover the module run with it in a fork of this process, up to
the first failure; a mutant is caught if one fails or it takes ten times as long. Prints the share that was caught, and
each survivor with its line before and after.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import copy
import importlib.abc
import importlib.util
import json
import os
import random
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]

MODULES = {
    "own_files": ("natprec.utils.own_files", ("tests/test_own_files.py",)),
    "schema": ("natprec.utils.schema", ("tests/utils/test_schema.py", "tests/test_own_files.py")),
    "allocation": ("natprec.solver.allocation", ("tests/solver/test_allocation.py", "tests/solver/test_agreement.py")),
    "solver": ("natprec.solver.solve", ("tests/solver/test_solve.py", "tests/solver/test_ladder.py",
                                        "tests/solver/test_uniform.py", "tests/solver/test_objective.py",
                                        "tests/test_untied.py")),
    "judge": ("natprec.evaluation.verdict", ("tests/evaluation/test_verdict.py", "tests/evaluation/test_judged.py")),
}  # fmt: skip
"""Name → module, and the tests that cover it, the quickest first."""

COMPARED: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.In: ast.NotIn, ast.NotIn: ast.In, ast.Is: ast.IsNot, ast.IsNot: ast.Is,
}  # fmt: skip
OPERATED: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.FloorDiv: ast.Mult, ast.Mod: ast.Mult,
    ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd,
}  # fmt: skip
NAMED = {"min": "max", "max": "min", "any": "all", "all": "any", "sorted": "list"}
LONGER, LEAST = 10, 20
"""Times that the tests take undisturbed, and seconds, after which a mutant that still runs is caught."""


@dataclass(frozen=True)
class Mutant:
    """One change of a module.

    Attributes:
        number: of the place, in the order of the tree.
        line: where it is.
        what: the line before and after.
    """

    number: int
    line: int
    what: str


class Changer(ast.NodeTransformer):
    """Counts the places that can be changed, and changes one of them."""

    def __init__(self, target: int | None = None) -> None:
        self.target, self.places, self.line = target, 0, 0

    def _is_due(self, node: Any) -> bool:
        self.places += 1
        if self.places - 1 == self.target:
            self.line = node.lineno
        return self.places - 1 == self.target

    def generic_visit(self, node: ast.AST) -> ast.AST:
        """Types, messages and decorators are passed over."""
        for name, value in ast.iter_fields(node):
            if name in ("annotation", "returns", "decorator_list", "type_params"):
                continue
            if isinstance(value, list):
                value[:] = [self.visit(each) if isinstance(each, ast.AST) else each for each in value]
            elif isinstance(value, ast.AST):
                setattr(node, name, self.visit(value))
        return node

    def visit_JoinedStr(self, node: ast.JoinedStr) -> ast.AST:
        """A message."""
        return node

    def visit_Compare(self, node: ast.Compare) -> ast.AST:
        """Another comparison."""
        if type(node.ops[0]) in COMPARED and self._is_due(node):
            node.ops[0] = COMPARED[type(node.ops[0])]()
        return self.generic_visit(node)

    def visit_BinOp(self, node: ast.BinOp) -> ast.AST:
        """Another operator; types that are joined stay."""
        if type(node.op) in OPERATED and self._is_due(node):
            node.op = OPERATED[type(node.op)]()
        return self.generic_visit(node)

    def visit_BoolOp(self, node: ast.BoolOp) -> ast.AST:
        """`and` for `or`."""
        if self._is_due(node):
            node.op = ast.Or() if isinstance(node.op, ast.And) else ast.And()
        return self.generic_visit(node)

    def visit_UnaryOp(self, node: ast.UnaryOp) -> ast.AST:
        """Without its `not` or sign."""
        due = isinstance(node.op, ast.Not | ast.USub) and self._is_due(node)
        return self.visit(node.operand) if due else self.generic_visit(node)

    def visit_If(self, node: ast.If) -> ast.AST:
        """Never."""
        if "TYPE_CHECKING" not in ast.unparse(node.test) and self._is_due(node):
            node.test = ast.copy_location(ast.Constant(False), node.test)
        return self.generic_visit(node)

    def visit_Raise(self, node: ast.Raise) -> ast.AST:
        """Nothing."""
        return ast.copy_location(ast.Pass(), node) if self._is_due(node) else node

    def visit_Call(self, node: ast.Call) -> ast.AST:
        """The least for the greatest."""
        if isinstance(node.func, ast.Name) and node.func.id in NAMED and self._is_due(node):
            node.func.id = NAMED[node.func.id]
        return self.generic_visit(node)

    def visit_Constant(self, node: ast.Constant) -> ast.AST:
        """Another number or truth; texts stay."""
        if isinstance(node.value, bool | int | float) and self._is_due(node):
            node.value = not node.value if isinstance(node.value, bool) else node.value + 1
        return node


def changed(tree: ast.Module, number: int) -> tuple[ast.Module, int]:
    """A copy of a module with the change of this number, and its line."""
    changer = Changer(number)
    made: Any = changer.visit(copy.deepcopy(tree))
    return ast.fix_missing_locations(made), changer.line


def mutants(tree: ast.Module) -> Iterator[Mutant]:
    """All of a module."""
    changer = Changer()
    changer.visit(copy.deepcopy(tree))
    before = ast.unparse(tree).splitlines()
    for number in range(changer.places):
        made, line = changed(tree, number)
        after = ast.unparse(made).splitlines()
        pairs = [(a.strip(), b.strip()) for a, b in zip(before, after, strict=False) if a != b]
        if pairs:
            yield Mutant(number, line, " → ".join(pairs[0]))


class Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Hands out a changed module under its own name."""

    def __init__(self, name: str, file: Path, tree: ast.Module) -> None:
        self.name, self.file, self.tree = name, file, tree

    def find_spec(self, name: str, path: Sequence[str] | None, target: Any = None) -> ModuleSpec | None:
        """Of this module alone."""
        return importlib.util.spec_from_loader(name, self, origin=str(self.file)) if name == self.name else None

    def exec_module(self, module: Any) -> None:
        """Run the changed code."""
        module.__file__ = str(self.file)
        exec(compile(self.tree, str(self.file), "exec"), module.__dict__)


def tested(name: str, file: Path, tree: ast.Module, tests: Sequence[str], limit: float) -> bool:
    """Whether the tests pass with a module that is this; in a fork."""
    child = os.fork()
    if child == 0:
        import pytest

        signal.alarm(int(limit) + 1)
        with Path(os.devnull).open("w") as nothing:
            os.dup2(nothing.fileno(), 1)
            os.dup2(nothing.fileno(), 2)
            sys.meta_path.insert(0, Finder(name, file, tree))
            code = 1
            with contextlib.suppress(BaseException):
                code = pytest.main(["-x", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", *tests])
            os._exit(int(code))
    return os.waitpid(child, 0)[1] == 0


def main() -> None:
    """A line for each module, then its survivors."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default=",".join(MODULES))
    parser.add_argument("--sample", type=int, help="mutants of each module")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--state", type=Path, help="JSON of what is known already")
    options = parser.parse_args()
    os.chdir(ROOT)
    sys.path.insert(0, str(ROOT))
    import pytest  # noqa: F401 - once, and not in every child
    import torch  # noqa: F401
    import transformers  # noqa: F401

    known: dict[str, bool] = json.loads(options.state.read_text()) if options.state and options.state.exists() else {}
    for label in options.only.split(","):
        name, tests = MODULES[label]
        file = ROOT / f"{name.replace('.', '/')}.py"
        tree, begun = ast.parse(file.read_text(encoding="utf-8")), time.monotonic()
        if not tested(name, file, tree, tests, 3600):
            sys.exit(f"{label}: its tests fail without any change")
        limit = max(LEAST, LONGER * (time.monotonic() - begun))
        every = list(mutants(tree))
        chosen = random.Random(options.seed).sample(every, min(options.sample or len(every), len(every)))
        survivors = []
        for mutant in sorted(chosen, key=lambda each: each.number):
            key = f"{label} {mutant.number} {mutant.what}"
            if key not in known:
                known[key] = not tested(name, file, changed(tree, mutant.number)[0], tests, limit)
                if options.state:
                    options.state.write_text(json.dumps(known, indent=1) + "\n")
            if not known[key]:
                survivors.append(mutant)
        share = 1 - len(survivors) / max(1, len(chosen))
        print(f"{label:12} {len(chosen)} of {len(every)} mutants, {share:.0%} caught", flush=True)
        for mutant in survivors:
            print(f"  {name}:{mutant.line}: {mutant.what}", flush=True)


if __name__ == "__main__":
    main()
