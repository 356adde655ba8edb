"""The next command after a failed verdict, with its numbers."""

from __future__ import annotations

import contextlib
import math
import shlex
from pathlib import Path

from natprec.errors import NatprecError
from natprec.evaluation.verdict import FAIL
from natprec.evaluation.verification import Verification
from natprec.evaluation.verify import MEASUREMENT, tightened
from natprec.measurement import Measurement
from natprec.solver import Plan


def next_step(plan: Plan, verification: Verification, folder: Path, model: str) -> str | None:
    """The command that keeps the promise next time; None where nothing failed.

    Args:
        model: as the user named it; `folder`: of the checkpoint.
    """
    if verification.verdict != FAIL or plan.eps is None or plan.eps_solved is None:
        return None
    solved = tightened(plan, verification.kl_mean)
    if plan.eps_scope == "site":
        target = f"--eps {_down(solved)} --eps-scope site"
    else:
        target = f"--eps {plan.eps:g} --margin {_up(max(0.0, 1 - solved / plan.eps))}"
    file = folder / MEASUREMENT
    if not file.is_file():
        return (
            f"natprec solve MEASUREMENT {target} --out plan.json, with the file of natprec measure; then natprec apply"
        )
    if not _reachable(file, plan, solved):
        return (
            f"no measured format is wide enough: accept more with --eps {_up(verification.kl_ci95[1])}, "
            "or measure smaller groups with --group-size 32"
        )
    return (
        f"natprec solve {shlex.quote(str(file))} {target} --out plan.json, then "
        f"natprec apply plan.json --model {shlex.quote(model)} --out {shlex.quote(str(folder) + '-2')}"
    )


def _reachable(file: Path, plan: Plan, eps_solved: float) -> bool:
    """Whether the measurement has formats that are wide enough."""
    with contextlib.suppress(NatprecError):
        found = Measurement.load(file)
        found.solve(
            eps=plan.eps, eps_scope=plan.eps_scope, eps_solved=eps_solved, engine=plan.engine, rounding=plan.rounding,
            activations=plan.activations, kv="16" if plan.cache is None else str(plan.cache.format.bits),
            eps_bwd=plan.eps_bwd, gpu=None if plan.gpu == found.header.gpu else plan.gpu,
        )  # fmt: skip
        return True
    return False


def _up(value: float) -> str:
    """Two or three figures, not below the value.

    >>> _up(0.2341), _up(0.01072)
    ('0.235', '0.0108')
    """
    step = 10.0 ** (math.floor(math.log10(abs(value))) - 2) if value else 1.0
    return f"{math.ceil(value / step - 1e-9) * step:.3g}"


def _down(value: float) -> str:
    """Three figures, not above the value."""
    step = 10.0 ** (math.floor(math.log10(value)) - 2)
    return f"{math.floor(value / step + 1e-9) * step:.3g}"
