"""`natprec apply`: a plan to a checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from natprec import pipeline
from natprec.claims import beside, claimed
from natprec.commands.options import (
    OUTPUT,
    ArithmeticOption,
    Column,
    Data,
    Device,
    Json,
    Length,
    Model,
    Overwrite,
    PlannedRounding,
    Refine,
    Resume,
    Seed,
    Tokens,
    Trust,
    WeightsOption,
    option,
)
from natprec.commands.output import print_json
from natprec.evaluation import judge
from natprec.files import new_folder, refuse_existing
from natprec.marks import refuse_inputs
from natprec.progress import Stages
from natprec.records import public_name
from natprec.roundings import rounding_named
from natprec.run import resumable
from natprec.run.request import Request, open_subject, refuse_on_disk, tell_leftovers
from natprec.run.tokens import calibration_tokens
from natprec.solver import Plan
from natprec.units import human_bytes

EXAMPLES = ("natprec apply plan.json --model ./folder --data calib.txt --out quantized",)


def apply(
    plan_file: Annotated[Path, typer.Argument(metavar="PLAN", help="plan.json written by natprec solve.")],
    model: Model,
    out: Annotated[Path, option("--out", OUTPUT, "Folder of the checkpoint.")],
    data: Data = None,
    text_column: Column = None,
    tokens: Tokens = 8192,
    sequence_length: Length = 256,
    rounding: PlannedRounding = None,
    refine: Refine = 0,
    seed: Seed = 0,
    overwrite: Overwrite = False,
    resume: Resume = False,
    arithmetic: ArithmeticOption = "auto",
    device: Device = "cpu",
    weights: WeightsOption = "auto",
    trust_remote_code: Trust = False,
    as_json: Json = False,
) -> None:
    """Round a model to a plan and write the checkpoint."""
    plan = Plan.load(plan_file)
    rounding = rounding or plan.rounding
    request = Request(
        model, eps=1.0, data=data, text_column=text_column, tokens=tokens, length=sequence_length,
        rounding=rounding, seed=seed, device=device, trust_remote_code=trust_remote_code, refine=refine,
        weights=weights, arithmetic=arithmetic, engine=plan.engine,
    )  # fmt: skip
    request.check(judged=False)
    refuse_inputs(out, {**request.inputs(), "the plan": plan_file})
    refuse_existing(out, overwrite)
    partial = beside(out, ".partial")
    stages = Stages()
    subject = open_subject(request, stages, plan.rotation)
    plan.refuse_other_model(subject.digest, model)
    refuse_on_disk(subject, plan.engine, refine)
    tell_leftovers(subject, plan.engine, stages)
    needed = refine or rounding_named(rounding).needs != "nothing"
    ids = calibration_tokens(request, subject, stages) if needed else None
    with claimed(out):
        if not resume:
            resumable.forget(partial)
        with new_folder(out, overwrite) as folder:
            pipeline.round_and_write(
                subject, plan, ids, rounding, folder, partial / resumable.STAGES, stages, refine, seed
            )
        resumable.forget(partial)
    size = judge.checkpoint_bytes(out)
    if as_json:
        print_json({"out": public_name(out), "stored_bytes": size, "seconds": stages.seconds})
    else:
        print(f"{human_bytes(size)} written to {out}; next: natprec verify {out} --model {model}")
