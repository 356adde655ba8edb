"""`natprec inspect`: options in, tables or JSON out."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from natprec.commands.options import Json, Overwrite, configured, like, own
from natprec.config import ROOM_KELVIN, QuantizeConfig
from natprec.errors import InputError
from natprec.utils.options import METHOD, MODEL, OUTPUT, positive

if TYPE_CHECKING:
    from natprec.solver import Plan

EXAMPLES = (
    "natprec inspect --model ./folder --data calib.txt",
    "natprec inspect --model ./folder --plan plan.json --out inspected",
)

TOP = 20
"""Rows of each table."""


@configured
def inspect(
    config: QuantizeConfig,
    model: Annotated[str | None, like("model", "Hub id, folder, .gguf file or alias.")] = None,
    plan: Annotated[
        Path | None,
        own("--plan", MODEL, "plan.json or a Hub id: the model in its formats; a folder is named by --model."),
    ] = None,
    measurement: Annotated[
        Path | None,
        own("--measurement", MODEL, "File of natprec measure, or a Hub id; else it is measured here, roughly."),
    ] = None,
    eps: Annotated[float, like("eps", "Tolerance of b* at each site.")] = 0.01,
    tokens: Annotated[int, like("tokens", "Tokens to measure and to count codes on.")] = 1024,
    length: Annotated[int, like("length", "Tokens per sequence.")] = 128,
    lower: Annotated[
        bool, own("--lower", METHOD, "Run a block (that of --site, or the first) on low-bit kernels.")
    ] = False,
    kelvin: Annotated[float, own("--kelvin", METHOD, "Temperature at which bits are erased.")] = ROOM_KELVIN,
    strict: Annotated[
        bool, own("--strict", OUTPUT, "Fail if a boundary loses information that no compression accounts for.")
    ] = False,
    site: Annotated[str | None, own("--site", OUTPUT, "Only this site, or all inside this module.")] = None,
    out: Annotated[Path | None, own("--out", OUTPUT, "Folder for inspection.json and graph.svg.")] = None,
    top: Annotated[int, own("--top", OUTPUT, "Rows of each table; 0: all.", min=0)] = TOP,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Show what information a model carries, site by site, and what each change of precision erases.

    Without --plan each domain gets the largest b* of its sites. Exit code 2 with --strict if information is lost.
    """
    from rich.console import Console

    from natprec.commands.output import print_json
    from natprec.data.seen import pieces_of
    from natprec.inspection.inspect import inspect as run
    from natprec.inspection.inspect import keep_named, require_explicit
    from natprec.inspection.lowered import lowered_block
    from natprec.inspection.picture import svg
    from natprec.inspection.report import tables, to_json
    from natprec.measurement import Measurement
    from natprec.measurement.measure import measure
    from natprec.models.hub import measurement_path, plan_path
    from natprec.pipeline.early import inputs
    from natprec.pipeline.request import check, open_subject, refuse_without_text
    from natprec.pipeline.samples import given_samples, held_out_samples
    from natprec.solver import Plan
    from natprec.solver.site_costs import EPS_BWD_SHOWN
    from natprec.utils.atomic_files import new_folder, refuse_existing, write_json
    from natprec.utils.marks import refuse_inputs
    from natprec.utils.progress import Stages

    planned = None if plan is None else Plan.load(plan_path(plan))
    name = model or _planned_model(planned)
    positive("kelvin", kelvin)
    config = replace(
        config, model=name, eps=eps, tokens=tokens, eval_tokens=tokens, length=length, rounding="rtn", sites="all",
        distortion=None if planned is None else planned.distortion,
    )  # fmt: skip
    check(config)
    tolerance = config.eps_bwd or (planned.eps_bwd if planned is not None else None) or EPS_BWD_SHOWN
    if out is not None:
        refuse_inputs(out, {**inputs(config), "--plan": plan, "--measurement": measurement})
        refuse_existing(out, overwrite)
    known = None if measurement is None else Measurement.load(measurement_path(measurement))
    stages = Stages()
    rotation = planned.rotation if planned is not None else known.header.rotation if known is not None else None
    subject = open_subject(config, stages, rotation)
    refuse_without_text(subject, "inspect")
    if planned is not None:
        planned.refuse_other_model(subject.digest, name)
        planned.refuse_other_sites(subject)
    if known is not None and known.header.model_digest != subject.digest:
        raise InputError(f"measurement {str(measurement)!r} is of {known.header.model!r}, not of {name!r}")
    if known is not None and measurement is not None:
        known.refuse_other_sites(subject.sites, measurement)
    samples = given_samples(config, subject, stages)
    held_out = held_out_samples(config, subject, stages, pieces_of(samples))
    if known is None:
        known = measure(subject, samples, config, stages=stages)
    found = run(
        subject, samples, held_out, known, eps=eps, eps_bwd=tolerance, plan=planned, kelvin=kelvin,
        stages=stages,
    )  # fmt: skip
    if strict:
        require_explicit(found)
    if lower:
        with stages.stage("run the lowered block"):
            found = replace(found, lowered=lowered_block(subject, held_out, found.formats, site or ""))
    shown = found if site is None else keep_named(found, site)
    value = {
        "model": subject.name,
        "model_digest": subject.digest,
        "eps": eps,
        "eps_bwd": tolerance,
        "kelvin": kelvin,
        "tokens": samples.tokens,
        **to_json(shown),
    }
    if out is not None:
        with new_folder(out, overwrite) as folder:
            write_json(folder / "inspection.json", value)
            (folder / "graph.svg").write_text(svg(found, f"{subject.name}: bits per fused operation"), encoding="utf-8")
    if as_json:
        print_json({**value, "seconds": stages.seconds})
        return
    Console().print(tables(shown, top or None), highlight=False)
    if out is not None:
        print(f"written to {out}")


def _planned_model(plan: Plan | None) -> str:
    """The model that a plan names, where the name is enough to find it.

    Raises:
        InputError: it is the name of a folder that is not here, or there is no plan.
    """
    from natprec.models.places import ALIASES

    if plan is None:
        raise InputError("give --model, or --plan with a plan of a hub model")
    if "/" not in plan.model and plan.model not in ALIASES and not Path(plan.model).exists():
        raise InputError(f"the plan is of {plan.model!r} and does not say where that lies; name it with --model")
    return plan.model
