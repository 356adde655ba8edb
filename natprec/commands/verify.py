"""`natprec verify`: a checkpoint against its promise."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from natprec.claims import beside
from natprec.commands.options import (
    Column,
    Device,
    EvalData,
    EvalTokens,
    Json,
    Length,
    Model,
    Resume,
    Seed,
    Trust,
    WeightsOption,
)
from natprec.commands.output import print_json
from natprec.errors import InputError
from natprec.evaluation import judge
from natprec.progress import Stages
from natprec.records import OWN_TEXT, public_name
from natprec.run import resumable
from natprec.run.request import Request, open_subject
from natprec.run.summary import verification_table
from natprec.run.tokens import held_out_tokens
from natprec.solver import Plan
from natprec.transforms import rotated_digest

EXAMPLES = ("natprec verify quantized --model ./folder --eval-data test.txt",)


def verify(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Checkpoint written by natprec.")],
    model: Model,
    eval_data: EvalData = None,
    text_column: Column = None,
    eval_tokens: EvalTokens = 4096,
    sequence_length: Length = 256,
    seed: Seed = 0,
    resume: Resume = False,
    device: Device = "cpu",
    weights: WeightsOption = "auto",
    trust_remote_code: Trust = False,
    as_json: Json = False,
) -> None:
    """Measure how far a checkpoint is from the original on held-out text. Exit code 3 if farther than eps.

    Of a text that may be the one measured on, by any name, only the last fifth is taken, which measuring leaves out.
    """
    if not folder.is_dir():
        raise InputError(f"checkpoint {str(folder)!r} does not exist; give the --out folder of natprec quantize")
    plan = Plan.load(folder / "plan.json")
    shared = eval_data if eval_data and judge.may_be_measured_on(folder, eval_data) else None
    request = Request(
        model, eps=1.0, data=shared, eval_data=eval_data, text_column=text_column, eval_tokens=eval_tokens,
        tokens=eval_tokens, length=sequence_length, seed=seed, device=device, trust_remote_code=trust_remote_code,
        distortion=plan.distortion, weights=weights, engine=plan.engine,
    )  # fmt: skip
    request.check()
    stages = Stages()
    subject = open_subject(request, stages)
    plan.refuse_other_model(rotated_digest(subject.digest, plan.rotation), model)  # judged beside the original itself
    ids = held_out_tokens(request, subject, stages, judge.measured_on(folder))
    partial = beside(folder, ".verify.partial")
    if not resume:
        resumable.forget(partial)
    verification = judge.verify(
        folder, subject, ids, plan, rounding=judge.recorded_rounding(folder),
        data=public_name(eval_data or OWN_TEXT), stages=stages, seed=seed, kept=partial / resumable.STAGES,
    )  # fmt: skip
    resumable.forget(partial)
    verification.save(folder / "verification.json")
    if as_json:
        print_json({**asdict(verification), "seconds": stages.seconds})
    else:
        Console().print(verification_table(plan, verification))
    if verification.passed is False:
        raise typer.Exit(3)
