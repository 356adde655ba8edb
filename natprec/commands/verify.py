"""`natprec verify`: a checkpoint against its promise."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from natprec.commands.options import Json, Resume, configured, like, own
from natprec.config import QuantizeConfig
from natprec.errors import InputError
from natprec.utils.options import OUTPUT

EXAMPLES = (
    "natprec verify quantized --model ./folder --eval-data test.txt",
    "natprec verify someones-w4a16 --model ./folder --eps 0.05 --eval-data test.txt",
    "natprec verify model.Q4_K_M.gguf --model ./folder --json",
    "natprec verify NAMESPACE/NAME@eps-0.01 --model ./folder --eval-data test.txt",
)


@configured
def verify(
    config: QuantizeConfig,
    folder: Annotated[
        Path,
        typer.Argument(metavar="DIR|ID", help="Checkpoint: a folder, .gguf file or Hub id, natprec's or others'."),
    ],
    eps: Annotated[float | None, like("eps", "Tolerance to judge by; default: the plan's.")] = None,
    length: Annotated[int | None, like("length", "Default: that of the last verification, else 256.")] = None,
    seed: Annotated[int | None, like("seed", "Default: that of the last verification, else 0.")] = None,
    out: Annotated[
        Path | None,
        own("--out", OUTPUT, "File for the verification; default: that in a DIR of natprec's."),
    ] = None,
    resume: Resume = False,
    as_json: Json = False,
) -> None:
    """Measure how far a checkpoint is from the original on held-out text. Exit code 3 if farther than the tolerance.

    Any checkpoint that transformers loads can be judged, and any GGUF file. Of natprec's, the text that
    `natprec quantize` judged on judges again. Of a text that may be the one measured on, by any name, only the last
    fifth is taken, which measuring leaves out.
    """
    from rich.console import Console

    from natprec.models.hub import checkpoint_path, is_hub_name
    from natprec.pipeline.components import pipeline_of, refuse_pipeline
    from natprec.pipeline.early import inputs, refuse_held_out
    from natprec.pipeline.early_folders import refuse_pictures
    from natprec.utils.atomic_files import refuse_other_file
    from natprec.utils.marks import refuse_inputs
    from natprec.utils.options import tolerance
    from natprec.utils.own_files import VERIFICATION
    from natprec.utils.records import public_name

    tolerance("eps", eps)
    name = public_name(folder if folder.exists() else str(folder))
    on_hub = is_hub_name(str(folder))
    folder = checkpoint_path(folder)
    if not folder.exists():
        raise InputError(f"checkpoint {str(folder)!r} does not exist; give a folder, a .gguf file or a Hub id")
    if pipeline_of(config) is None:  # of a pipeline the checkpoint may say which part it is
        refuse_pipeline(config)
    refuse_held_out(config if length is None else replace(config, length=length))
    refuse_pictures(config)
    if out is not None:
        refuse_inputs(out, inputs(config))
        refuse_other_file(out, VERIFICATION.is_at, "verification")
    if not (folder / "plan.json").is_file():
        _verify_foreign(config, folder, name, eps, length, seed, out, as_json)
        return
    from natprec.commands.output import print_json
    from natprec.evaluation import verify as judge
    from natprec.formats.gpus import generation
    from natprec.pipeline import resume as resumable
    from natprec.pipeline.components import judge_trajectory
    from natprec.pipeline.held_out import held_out
    from natprec.pipeline.next_step import next_step
    from natprec.pipeline.provenance import again, command_of
    from natprec.pipeline.request import check
    from natprec.pipeline.summary import verification_table
    from natprec.solver import Plan
    from natprec.transforms import rotated_digest
    from natprec.utils.claims import beside
    from natprec.utils.meeting import joined
    from natprec.utils.progress import Stages

    plan = Plan.load(folder / "plan.json")
    known = judge.recorded(folder)
    config = judge.as_recorded(config, known, length, seed)
    command = command_of("verify", config, name)
    on, config = None if config.gpu is None else generation(config.gpu), replace(config, gpu=None)
    text = config.eval_data
    shared = text if text and judge.may_be_measured_on(folder, text) else None
    config = replace(
        config, data=shared, tokens=config.eval_tokens or config.tokens, distortion=plan.distortion, engine=plan.engine
    )
    check(config, solved=False)
    plan = plan if eps is None else replace(plan, eps=eps, eps_scope="model")
    partial = beside(Path(name.replace("/", "--")) if on_hub else folder, ".verify.partial")
    with joined(config.device) as (workers, own_device):
        config, stages = replace(config, device=own_device), Stages(quiet=not workers.first)
        subject = resumable.opened_together(config, stages, workers, apart=False)
        # judged beside the original itself
        plan.refuse_other_model(rotated_digest(subject.digest, plan.rotation), config.model)
        unseen = subject.unseen(plan.quantized)
        if unseen:
            stages.note(
                f"text reaches none of {len(unseen)} quantized weights ({unseen[0]} …), so it does not judge them: add "
                "--images DIR"
            )
        judging = held_out(config, subject, stages, judge.measured_on(folder))
        part = known.part if known is not None and judging.part(known.part) else 0
        if workers.first and not resume:
            resumable.forget(partial)
        verification = judge.verify(
            folder, subject, judging.part(part), plan, rounding="unknown" if known is None else known.rounding,
            stages=stages, eval_tokens=config.eval_tokens, seed=config.seed, confidence=config.confidence, part=part,
            provenance=again(plan.provenance, subject, command, config),
            resume_folder=resumable.resume_folder_of(partial, subject), gpu=on,
        )  # fmt: skip
        verification = judge.with_history(verification, known)
        if workers.first:
            resumable.forget(partial)
            if out is not None or not on_hub:  # the Hub's cache stays as it came
                verification.save(out or folder / "verification.json")
                if out is None:
                    judge_trajectory(folder, subject, config.seed, stages)
    if not workers.first:
        raise typer.Exit(3 if verification.passed is False else 0)
    if as_json:
        print_json({**verification.to_json(), "seconds": stages.seconds})
    else:
        Console().print(verification_table(plan, verification))
    advice = next_step(plan, verification, folder, config.model)
    if advice is not None:
        stages.note(f"next: {advice}")
    if verification.passed is False:
        raise typer.Exit(3)


def _verify_foreign(
    config: QuantizeConfig,
    path: Path,
    name: str,
    eps: float | None,
    length: int | None,
    seed: int | None,
    out: Path | None,
    as_json: bool,
) -> None:
    """A checkpoint without a plan: another quantizer's."""
    from rich.console import Console

    from natprec.commands.output import print_json
    from natprec.evaluation.conclude import Judging
    from natprec.evaluation.foreign import verify_foreign
    from natprec.formats.gpus import generation
    from natprec.pipeline.held_out import held_out
    from natprec.pipeline.provenance import command_of, of_subject
    from natprec.pipeline.request import check
    from natprec.pipeline.resume import opened_together
    from natprec.pipeline.summary import foreign_table
    from natprec.utils.meeting import joined
    from natprec.utils.progress import Stages

    config = replace(config, length=length or config.length, seed=config.seed if seed is None else seed)
    command = command_of("verify", config, name)
    on, config = None if config.gpu is None else generation(config.gpu), replace(config, gpu=None)
    check(replace(config, tokens=config.eval_tokens or config.tokens), solved=False)
    with joined(config.device) as (workers, own_device):
        config, stages = replace(config, device=own_device), Stages(quiet=not workers.first)
        subject = opened_together(replace(config, engine="natprec"), stages, workers, apart=False)
        texts, provenance = held_out(config, subject, stages).part(0), of_subject(subject, command, config)
        how = Judging(config.eval_tokens, config.seed, config.confidence, provenance=provenance)
        verification = verify_foreign(path, subject, texts, eps, how, stages, on)
        if workers.first and out is not None:
            verification.save(out)
    if not workers.first:
        raise typer.Exit(3 if verification.passed is False else 0)
    if as_json:
        print_json({**verification.to_json(), "seconds": stages.seconds})
    else:
        Console().print(foreign_table(name, verification))
    if verification.passed is False:
        raise typer.Exit(3)
