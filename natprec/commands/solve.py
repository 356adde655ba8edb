"""`natprec solve`: a measurement and a target to a plan."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from natprec.commands.options import (
    KV,
    OUTPUT,
    Activations,
    Bits,
    Eps,
    EpsBwd,
    Json,
    MaxSize,
    Overwrite,
    PlannedEngine,
    PlannedRounding,
    ScopeOption,
    option,
)
from natprec.commands.output import print_json
from natprec.errors import InputError
from natprec.files import refuse_existing_file
from natprec.marks import refuse_inputs
from natprec.measurement import Measurement
from natprec.run.summary import plan_table
from natprec.solver import Plan

EXAMPLES = ("natprec solve folder.measurement --eps 0.01 --out plan.json",)


def solve(
    measurement: Annotated[Path, typer.Argument(help="File written by natprec measure.")],
    eps: Eps = None,
    bits: Bits = None,
    max_size: MaxSize = None,
    eps_scope: ScopeOption = "model",
    eps_bwd: EpsBwd = None,
    activations: Activations = "16",
    kv: KV = "16",
    engine: PlannedEngine = None,
    rounding: PlannedRounding = None,
    out: Annotated[Path | None, option("--out", OUTPUT, "Write plan.json here.")] = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """From a measurement to a plan, in milliseconds."""
    if out is not None:
        refuse_inputs(out, {"the measurement": measurement})
        refuse_existing_file(out, overwrite, is_plan, "plan")
    plan = Measurement.load(measurement).solve(
        eps=eps, bits=bits, max_size=max_size, eps_scope=eps_scope, engine=engine, rounding=rounding,
        activations=activations, kv=kv, eps_bwd=eps_bwd,
    )  # fmt: skip
    if out is not None:
        plan.save(out)
    if as_json:
        print_json(plan.to_json())
    else:
        Console().print(plan_table(plan))


def is_plan(path: Path) -> bool:
    """Whether a file is a plan that this natprec reads."""
    try:
        Plan.load(path)
    except InputError:
        return False
    return True
