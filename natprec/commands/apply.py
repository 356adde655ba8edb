"""`natprec apply`: a plan to a checkpoint."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from natprec.commands.options import Json, Overwrite, Resume, configured, like, own
from natprec.config import QuantizeConfig
from natprec.utils.options import OUTPUT

EXAMPLES = ("natprec apply plan.json --model ./folder --data calib.txt --out quantized",)


@configured
def apply(
    config: QuantizeConfig,
    plan_file: Annotated[Path, typer.Argument(metavar="PLAN", help="plan.json written by natprec solve.")],
    out: Annotated[Path, own("--out", OUTPUT, "Folder of the checkpoint.")],
    rounding: Annotated[str | None, like("rounding", "Default: the one measured or planned for.")] = None,
    overwrite: Overwrite = False,
    resume: Resume = False,
    as_json: Json = False,
) -> None:
    """Round a model to a plan and write the checkpoint."""
    from natprec.commands.output import print_json
    from natprec.evaluation import verify as judge
    from natprec.pipeline import resume as resumable
    from natprec.pipeline import rounded
    from natprec.pipeline.components import refuse_pipeline
    from natprec.pipeline.early import inputs
    from natprec.pipeline.early_folders import refuse_pictures
    from natprec.pipeline.learning import learning_asked
    from natprec.pipeline.request import check, refuse_on_disk, tell_leftovers
    from natprec.pipeline.samples import calibration_samples
    from natprec.pipeline.together import claimed_together, made_by_first, new_folder_together
    from natprec.roundings import rounding_named
    from natprec.solver import Plan
    from natprec.utils.atomic_files import refuse_existing
    from natprec.utils.claims import beside
    from natprec.utils.human import human_bytes
    from natprec.utils.marks import refuse_inputs
    from natprec.utils.meeting import joined
    from natprec.utils.progress import Stages
    from natprec.utils.records import public_name

    plan = Plan.load(plan_file)
    config = replace(config, rounding=plan.rounding if rounding is None else rounding, engine=plan.engine)
    check(config, judged=False, solved=False)
    refuse_pipeline(config)
    refuse_inputs(out, {**inputs(config), "the plan": plan_file})
    refuse_existing(out, overwrite)
    refuse_pictures(config)
    partial = beside(out, ".partial")
    with joined(config.device) as (workers, own_device):
        config, stages = replace(config, device=own_device), Stages(quiet=not workers.first)
        subject = resumable.opened_together(config, stages, workers, plan.rotation, plan.untied)
        plan.refuse_other_model(subject.digest, config.model)
        subject.refuse_unseen(plan.quantized)
        plan.refuse_other_sites(subject)
        refuse_on_disk(subject, config)
        tell_leftovers(subject, plan.engine, stages)
        samples = None
        if config.learns or rounding_named(config.rounding).needs != "nothing":
            samples = made_by_first(lambda: calibration_samples(config, subject, stages), subject)
        learning = learning_asked(config, subject, samples, stages, partial)
        with claimed_together(out, workers):
            if workers.first and not resume:
                resumable.forget(partial)
            with new_folder_together(out, overwrite, workers) as folder:
                rounded.round_and_write(
                    subject,
                    plan,
                    samples,
                    config.rounding,
                    folder,
                    resumable.resume_folder_of(partial, subject),
                    stages,
                    learning,
                    config.seed,
                )
            if workers.first:
                resumable.forget(partial)
    if not workers.first:
        return
    size = judge.checkpoint_bytes(out)
    if as_json:
        print_json({"out": public_name(out), "stored_bytes": size, "seconds": stages.seconds})
    else:
        print(f"{human_bytes(size)} written to {out}; next: natprec verify {out} --model {config.model}")
