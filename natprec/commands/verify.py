"""`natprec verify`: a checkpoint against its promise."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from natprec.commands.options import Json, Resume, configured
from natprec.config import QuantizeConfig
from natprec.errors import InputError

EXAMPLES = ("natprec verify quantized --model ./folder --eval-data test.txt",)


@configured
def verify(
    config: QuantizeConfig,
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Checkpoint written by natprec.")],
    resume: Resume = False,
    as_json: Json = False,
) -> None:
    """Measure how far a checkpoint is from the original on held-out text. Exit code 3 if farther than eps.

    Of a text that may be the one measured on, by any name, only the last fifth is taken, which measuring leaves out.
    """
    from rich.console import Console

    from natprec.commands.output import print_json
    from natprec.evaluation import verify as judge
    from natprec.formats.gpus import generation
    from natprec.pipeline import resume as resumable
    from natprec.pipeline.request import check, open_subject
    from natprec.pipeline.samples import held_out_samples
    from natprec.pipeline.summary import verification_table
    from natprec.solver import Plan
    from natprec.transforms import rotated_digest
    from natprec.utils.claims import beside
    from natprec.utils.progress import Stages
    from natprec.utils.records import OWN_TEXT, public_name

    if not folder.is_dir():
        raise InputError(f"checkpoint {str(folder)!r} does not exist; give the --out folder of natprec quantize")
    plan = Plan.load(folder / "plan.json")
    on, config = None if config.gpu is None else generation(config.gpu), replace(config, gpu=None)
    text = config.eval_data
    shared = text if text and judge.may_be_measured_on(folder, text) else None
    config = replace(config, data=shared, tokens=config.eval_tokens, distortion=plan.distortion, engine=plan.engine)
    check(config, solved=False)
    stages = Stages()
    subject = open_subject(config, stages, apart=False)
    # judged beside the original itself
    plan.refuse_other_model(rotated_digest(subject.digest, plan.rotation), config.model)
    samples = held_out_samples(config, subject, stages, judge.measured_on(folder))
    partial = beside(folder, ".verify.partial")
    if not resume:
        resumable.forget(partial)
    verification = judge.verify(
        folder, subject, samples, plan, rounding=judge.recorded_rounding(folder),
        data=public_name(text or OWN_TEXT), stages=stages, seed=config.seed, gpu=on,
        resume_folder=resumable.resume_folder_of(partial, subject),
    )  # fmt: skip
    resumable.forget(partial)
    verification.save(folder / "verification.json")
    if as_json:
        print_json({**verification.to_json(), "seconds": stages.seconds})
    else:
        Console().print(verification_table(plan, verification))
    if verification.passed is False:
        raise typer.Exit(3)
