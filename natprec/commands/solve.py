"""`natprec solve`: a measurement and a target to a plan."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated

import typer

from natprec.commands.options import Json, Overwrite, configured, like, own
from natprec.config import QuantizeConfig
from natprec.errors import InputError
from natprec.formats.engines import PROFILES
from natprec.utils.options import OUTPUT, TARGET

EXAMPLES = (
    "natprec solve folder.measurement --eps 0.01 --out plan.json",
    "natprec solve folder.measurement --ladder",
    "natprec solve folder.measurement --eps 0.05 --minimize decode --costs costs.toml --out plan.json",
    "natprec solve NAMESPACE/NAME --eps 0.02 --out plan.json",
)


@configured
def solve(
    config: QuantizeConfig,
    measurement: Annotated[
        Path, typer.Argument(metavar="FILE|ID", help="File written by natprec measure, or a Hub id.")
    ],
    engine: Annotated[str | None, like("engine", f"{', '.join(PROFILES)}; default: the one measured for.")] = None,
    rounding: Annotated[str | None, like("rounding", "Default: the one measured or planned for.")] = None,
    out: Annotated[Path | None, own("--out", OUTPUT, "Write plan.json here.")] = None,
    show_ladder: Annotated[
        bool, own("--ladder", TARGET, "Show what each usual eps would cost, instead of writing a plan.")
    ] = False,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """From a measurement to a plan, in milliseconds."""
    from natprec.benchmark.ladder import measured_beside
    from natprec.commands.ladder_table import measured_table, planned_table
    from natprec.commands.output import print_json, show, word_for
    from natprec.distortions.registry import margin_of
    from natprec.measurement import Measurement
    from natprec.models.hub import measurement_path
    from natprec.pipeline.provenance import command_of
    from natprec.pipeline.summary import plan_table
    from natprec.solver.ladder import ladder
    from natprec.utils.atomic_files import refuse_existing_file
    from natprec.utils.marks import refuse_inputs
    from natprec.utils.records import public_name

    if show_ladder and (out is not None or config.eps or config.bits or config.max_size):
        raise InputError("a ladder shows all targets and writes no plan; leave out --eps, --bits, --max-size and --out")
    if out is not None:
        refuse_inputs(out, {"the measurement": measurement})
        refuse_existing_file(out, overwrite, is_plan, "plan")
    file = measurement_path(measurement)
    found = Measurement.load(file)
    if show_ladder:
        rungs = ladder(
            found, engine=engine, rounding=rounding, margin=config.margin, activations=config.activations, kv=config.kv,
            eps_bwd=config.eps_bwd, gpu=config.gpu, untested=config.untested, portable=config.portable,
            minimize=config.minimize, costs=config.costs,
        )  # fmt: skip
        measured = measured_beside(file, found.header.model_digest)
        if as_json:
            print_json(
                {
                    "model": found.header.model,
                    "margin": margin_of(found.header.distortion, config.margin),
                    "minimize": config.minimize,
                    "cost_unit": rungs[0].cost_unit,
                    "cost_source": rungs[0].cost_source,
                    "rungs": [asdict(each) for each in rungs],
                    "measured": [asdict(each) for each in measured],
                }
            )
        else:
            show(planned_table(rungs), word_for(rungs[0].cost_source))
            if measured:
                print("\nmeasured on held-out text:")
                show(measured_table(measured))
        return
    plan = found.solve(engine=engine, rounding=rounding, **config.given("solve"))
    plan = replace(plan, provenance=found.header.provenance(command_of("solve", config, public_name(str(measurement)))))
    if out is not None:
        plan.save(out)
    if as_json:
        print_json(plan.to_json())
    else:
        show(plan_table(plan), word_for(plan.cost_source))


def is_plan(path: Path) -> bool:
    """Whether a file is a plan that this natprec reads."""
    from natprec.solver import Plan

    try:
        Plan.load(path)
    except InputError:
        return False
    return True
