"""`natprec eval`: what quantization does to answers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from natprec.commands.options import Json, Overwrite, configured, own
from natprec.config import QuantizeConfig
from natprec.utils.options import METHOD, OUTPUT, TEXT

MOST = 10**9
"""Of documents or examples, more than any task has."""

EXAMPLES = (
    "natprec eval quantized --model ./folder --tasks lambada,arc_easy --limit 200",
    "natprec eval quantized --model ./folder --tasks-data ./questions --tasks piqa --out eval.json",
)


@configured
def eval(  # the command's name
    config: QuantizeConfig,
    folder: Annotated[Path, typer.Argument(metavar="DIR|ID", help="Checkpoint to evaluate, or its Hub id.")],
    tasks: Annotated[
        str, own("--tasks", TEXT, "Tasks of lm-eval, or .yaml and .jsonl files, separated by commas.")
    ] = "lambada,arc_easy,piqa",
    tasks_data: Annotated[
        Path | None, own("--tasks-data", TEXT, "Folder of NAME.jsonl files, which need no network.")
    ] = None,
    limit: Annotated[int | None, own("--limit", TEXT, "Maximum number of documents per task.", min=1, max=MOST)] = None,
    shots: Annotated[int, own("--shots", TEXT, "Number of solved examples before each question.", min=0, max=MOST)] = 0,
    backend: Annotated[str, own("--backend", METHOD, "Runtime of the checkpoint: transformers or natprec.")] = (
        "transformers"
    ),
    out: Annotated[Path | None, own("--out", OUTPUT, "Write eval.json here.")] = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Ask the original and a checkpoint the same questions, and count the answers that flip.

    An average hides answers that flip in both directions. The table says the difference with its 95 % interval, and
    the smallest difference that so many documents can show.
    """
    from rich.console import Console

    from natprec.benchmark.report import table
    from natprec.benchmark.run import asked, evaluate, refuse_backend, require_lm_eval
    from natprec.commands.output import print_json
    from natprec.errors import InputError
    from natprec.models.hub import checkpoint_path
    from natprec.pipeline.early import inputs
    from natprec.pipeline.provenance import command_of, of_subject
    from natprec.pipeline.resume import opened_together
    from natprec.solver import Plan
    from natprec.utils.atomic_files import refuse_existing_file
    from natprec.utils.marks import refuse_inputs
    from natprec.utils.meeting import joined
    from natprec.utils.progress import Stages
    from natprec.utils.provenance import command_line
    from natprec.utils.records import public_name

    name = public_name(folder if folder.exists() else str(folder))
    folder = checkpoint_path(folder)
    if not folder.is_dir():
        raise InputError(f"checkpoint {str(folder)!r} does not exist; give a folder or a Hub id")
    require_lm_eval()
    refuse_backend(backend, folder)
    wanted = asked(tasks, tasks_data)
    if out is not None:
        refuse_inputs(out, {**inputs(config), "--tasks-data": tasks_data})
        refuse_existing_file(out, overwrite, is_evaluation, "evaluation")
    engine = Plan.load(folder / "plan.json").engine if (folder / "plan.json").is_file() else "transformers"
    with joined(config.device) as (workers, own_device):
        config, stages = replace(config, device=own_device), Stages(quiet=not workers.first)
        subject = opened_together(replace(config, length=2), stages, workers)  # questions have their own lengths
        command = command_line(command_of("eval", config, name), asking(tasks, tasks_data, limit, shots, backend))
        found = evaluate(
            subject, folder, wanted, name=name, engine=engine, backend=backend, limit=limit, shots=shots,
            seed=config.seed, stages=stages, provenance=of_subject(subject, command, config),
        )  # fmt: skip
        if out is not None and workers.first:
            found.save(out)
    if not workers.first:
        return
    if as_json:
        print_json({**found.to_json(), "seconds": stages.seconds})
    else:
        Console().print(table(found))


def asking(
    tasks: str, tasks_data: Path | None, limit: int | None, shots: int, backend: str
) -> list[tuple[str, object]]:
    """The command's own options that were given, files by their names."""
    from natprec.utils.records import public_name

    named = ",".join(public_name(each.strip()) for each in tasks.split(","))
    given: dict[str, object | None] = {
        "--tasks": named,
        "--tasks-data": None if tasks_data is None else public_name(tasks_data),
        "--limit": limit,
        "--shots": shots or None,
        "--backend": None if backend == "transformers" else backend,
    }
    return [(flag, value) for flag, value in given.items() if value is not None]


def is_evaluation(path: Path) -> bool:
    """Whether a file is an eval.json."""
    from natprec.utils.own_files import EVALUATION, what_is

    return what_is(path) == EVALUATION.one
