"""`natprec quantize`: the whole flow, one command."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from natprec.commands.options import DryRun, Json, Overwrite, Resume, configured, own, types_of
from natprec.config import NOT_ROUNDED, QuantizeConfig
from natprec.pipeline import recipe as recipes
from natprec.pipeline.recipe import Recipe
from natprec.utils.options import MODEL, OUTPUT, TARGET

EXAMPLES = (
    "natprec quantize --model HuggingFaceTB/SmolLM2-135M --eps 0.01",
    "natprec quantize --model ./folder --bits 4.25 --data calib.txt --eval-data test.txt",
    "natprec quantize --model ./folder --max-size 90MB --out small --json",
    "natprec quantize --model ./folder --eps 0.05 --activations auto --kv 8",
    "natprec quantize --model ./folder --ladder 3.5,4,4.5",
    "natprec quantize --recipe recipes/smollm2-135m-eps0.05.toml --data calib.txt",
)


ONE_RUN = ("recipe", "resume", "dry_run", "as_json")
"""Options that say how this run goes, not what comes of it: no recipe gives them."""


def _defaults(context: typer.Context, file: Path | None) -> Recipe | None:
    """Read the recipe first: what it says holds where the command line says nothing."""
    if file is None:
        return None
    types = {name: each for name, each in types_of(quantize).items() if name not in ONE_RUN}
    read = Recipe.read(file, types)
    context.default_map = read.options
    return read


RecipeFile = Annotated[
    Recipe | None,
    own(
        "--recipe",
        MODEL,
        "TOML file of options and expected figures; options on the command line win.",
        parser=Path,
        metavar="FILE",
        callback=_defaults,
        is_eager=True,
    ),
]


@configured
def quantize(
    config: QuantizeConfig,
    recipe: RecipeFile = None,
    out: Annotated[Path | None, own("--out", OUTPUT, "Folder of the checkpoint; default MODEL-natprec.")] = None,
    ladder: Annotated[
        str | None,
        own("--ladder", TARGET, "Several sizes from one measurement, bits per weight: 3.5,4,4.5 → OUT/3.5bpw …"),
    ] = None,
    overwrite: Overwrite = False,
    resume: Resume = False,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Measure a model, solve its precision, write a checkpoint and verify that it keeps eps.

    Exit code 0: the promise is kept, clearly or within noise. 3: it is not; the checkpoint is written and says so.
    2: bad input. 4: the checkpoint is written, but could not be judged.
    """
    from natprec.pipeline.early import parse_ladder, refuse_early

    model = config.model
    name = Path(model).resolve().name if Path(model).exists() else model.partition("@")[0].split("/")[-1]
    folder = out or Path(name.removesuffix(".gguf") + "-natprec")
    widths = None if ladder is None else parse_ladder(ladder)
    if widths is None:
        config.check()
    refuse_early(config, None if dry_run else folder, overwrite)
    from natprec.commands.dry_run import dry_run as show_dry_run
    from natprec.commands.ladder_table import written_table
    from natprec.commands.output import print_json, show, word_for
    from natprec.pipeline import quantize as pipeline
    from natprec.pipeline.ladder import quantize_ladder
    from natprec.pipeline.next_step import next_step
    from natprec.pipeline.request import check
    from natprec.pipeline.summary import result_table, serving_line
    from natprec.utils.launcher import refuse_many
    from natprec.utils.meeting import joined
    from natprec.utils.memory import peak_bytes
    from natprec.utils.progress import Stages
    from natprec.utils.records import public_name

    config = replace(config, sites="weights" if config.activations == config.kv == NOT_ROUNDED else "all")
    if dry_run:
        refuse_many("natprec quantize --dry-run")
        config = config if widths is None else replace(config, bits=max(widths))
        check(config)
        show_dry_run(config, Stages(), as_json)
        return
    with joined(config.device) as (workers, own_device):
        stages, config = Stages(quiet=not workers.first), replace(config, device=own_device)
        how: Any = {"overwrite": overwrite, "resume": resume, "stages": stages, "workers": workers}
        rungs = quantize_ladder(config, widths, folder, **how) if widths is not None else []
        result = None if widths is not None else pipeline.quantize(config, folder, **how)
        sent = workers.sent_by_all()
    if result is None:
        if not workers.first:
            return
        if as_json:
            print_json(
                {"out": public_name(folder), "rungs": [rung.to_json() for rung in rungs], "seconds": stages.seconds}
            )
        else:
            show(written_table(rungs))
            print(f"written to {folder}")
        return
    measurement, plan, verification = result
    if not workers.first:
        raise typer.Exit(3 if verification.passed is False else 0)
    found = verification.to_json()
    compared = recipe.compared(found) if recipe is not None else {}
    if as_json:
        print_json({**found, **plan.cost_to_json(), "out": public_name(folder), "seconds": stages.seconds,
                     "processes": workers.size, "sent_bytes": sent, "peak_bytes": peak_bytes(),
                     "few_tokens": plan.few_tokens, **({"expected": compared} if compared else {})})  # fmt: skip
    else:
        word = word_for(plan.cost_source)
        show(result_table(measurement, plan, verification, stages.seconds), word)
        for line in recipes.lines(compared) if compared else ():
            show(line, word)
        show(f"written to {folder}", word)
        if verification.perplexity_quantized is not None:  # others write no text
            show(serving_line(plan.engine, str(folder)), word)
    advice = next_step(plan, verification, folder, model)
    if advice is not None:
        stages.note(f"next: {advice}")
    if verification.passed is False:
        raise typer.Exit(3)
