"""The command line: options in, tables or one JSON object out, exit codes for scripts.

Exit codes: 0 done (and the promise kept), 2 a request that cannot be carried out, 3 the promise is
not kept, 130 interrupted.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.console import Console

from natprec.errors import InputError, NatprecError

app = typer.Typer(
    name="natprec",
    help="Quantize a language model to a tolerance: precision is measured, solved and proved, not searched.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)

Model = Annotated[str, typer.Option("--model", help="Hub id, folder, .gguf file, or smollm2-135m.")]
Eps = Annotated[float | None, typer.Option("--eps", help="KL that the model may lose, nats per token.")]
Bits = Annotated[float | None, typer.Option("--bits", help="Stored bits per quantized weight, scales included.")]
MaxSize = Annotated[float | None, typer.Option("--max-size", help="Bytes of the whole checkpoint on disk.")]
ScopeOption = Annotated[
    Literal["model", "site"], typer.Option("--eps-scope", help="Share eps over the model, or give it to each site.")
]
Data = Annotated[
    str | None,
    typer.Option(
        "--data", help="Calibration text: .txt, .jsonl, .parquet, hub dataset; default: written by the model."
    ),
]
EvalData = Annotated[str | None, typer.Option("--eval-data", help="Held-out text; default: another part of --data.")]
Column = Annotated[str | None, typer.Option("--text-column", help="Column of a table that holds the text.")]
Tokens = Annotated[int, typer.Option("--tokens", help="Calibration tokens.")]
EvalTokens = Annotated[int, typer.Option("--eval-tokens", help="Held-out tokens.")]
Length = Annotated[int, typer.Option("--sequence-length", help="Tokens per sequence.")]
GroupSize = Annotated[str, typer.Option("--group-size", help="32, 64, 128, channel, or auto: all that fit compete.")]
Engine = Annotated[str, typer.Option("--engine", help="What must run it: vllm, transformers, sglang, natprec.")]
EstimatorOption = Annotated[str, typer.Option("--estimator", help="fisher (one sweep) or exact (replay; slow).")]
RoundingOption = Annotated[str, typer.Option("--rounding", help="gptq or rtn (round to nearest).")]
Seed = Annotated[int, typer.Option("--seed", help="Of sampled labels, sampled text and intervals.")]
Device = Annotated[str, typer.Option("--device", help="Where to compute: cpu, cuda, cuda:1.")]
Trust = Annotated[bool, typer.Option("--trust-remote-code", help="Run Python code that comes with the model.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace an existing output.")]
Resume = Annotated[bool, typer.Option("--resume", help="Go on from the last finished part of a killed run.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Say memory and time, and stop.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else on standard output.")]


@app.command(
    epilog="Examples: **natprec quantize --model HuggingFaceTB/SmolLM2-135M --eps 0.01** or "
    "**natprec quantize --model ./folder --bits 4.25 --data calib.txt --eval-data test.txt --out q --json**"
)
def quantize(
    model: Model,
    eps: Eps = None,
    bits: Bits = None,
    max_size: MaxSize = None,
    eps_scope: ScopeOption = "model",
    data: Data = None,
    eval_data: EvalData = None,
    text_column: Column = None,
    tokens: Tokens = 8192,
    eval_tokens: EvalTokens = 4096,
    sequence_length: Length = 256,
    group_size: GroupSize = "64",
    engine: Engine = "vllm",
    estimator: EstimatorOption = "fisher",
    rounding: RoundingOption = "gptq",
    seed: Seed = 0,
    out: Annotated[Path | None, typer.Option("--out", help="Folder of the checkpoint; default MODEL-natprec.")] = None,
    overwrite: Overwrite = False,
    resume: Resume = False,
    dry_run: DryRun = False,
    device: Device = "cpu",
    trust_remote_code: Trust = False,
    as_json: Json = False,
) -> None:
    """Measure a model, solve its precision, write a checkpoint and prove that KL <= eps.

    Exit code 0: the promise holds. 3: it does not (the checkpoint is written and says so). 2: bad input.
    """
    from natprec import pipeline
    from natprec.progress import Stages
    from natprec.summary import result_table

    request = pipeline.Request(
        model, eps, bits, max_size, eps_scope, data, eval_data, text_column, tokens, eval_tokens, sequence_length,
        parse_group_size(group_size), engine, estimator, rounding, seed, device, trust_remote_code,
    )  # fmt: skip
    stages = Stages()
    if dry_run:
        request.check()
        _dry_run(request, stages, as_json)
        return
    folder = out or Path(model.rstrip("/").split("/")[-1].removesuffix(".gguf") + "-natprec")
    measurement, plan, verification = pipeline.quantize(
        request, folder, overwrite=overwrite, resume=resume, stages=stages
    )
    if as_json:
        _print_json({**asdict(verification), "out": str(folder), "seconds": stages.seconds})
    else:
        Console().print(result_table(measurement, plan, verification, stages.seconds))
        Console().print(f"written to {folder}", highlight=False)
    if verification.passed is False:
        raise typer.Exit(3)


@app.command(epilog="Example: **natprec measure --model ./folder --data calib.txt --out folder.measurement**")
def measure(
    model: Model,
    out: Annotated[Path, typer.Option("--out", help="File of the measurement.")],
    data: Data = None,
    text_column: Column = None,
    tokens: Tokens = 8192,
    sequence_length: Length = 256,
    group_size: GroupSize = "64",
    engine: Engine = "vllm",
    estimator: EstimatorOption = "fisher",
    seed: Seed = 0,
    overwrite: Overwrite = False,
    resume: Resume = False,
    dry_run: DryRun = False,
    device: Device = "cpu",
    trust_remote_code: Trust = False,
    as_json: Json = False,
) -> None:
    """Measure once: what every width costs at every site. Solve any eps or size from the file."""
    from natprec import pipeline
    from natprec.files import refuse_existing
    from natprec.measurement.measure import measure as run
    from natprec.progress import Stages

    request = pipeline.Request(
        model, eps=1.0, data=data, text_column=text_column, tokens=tokens, length=sequence_length,
        group_size=parse_group_size(group_size), engine=engine, estimator=estimator, seed=seed, device=device,
        trust_remote_code=trust_remote_code,
    )  # fmt: skip
    request.check()
    stages = Stages()
    if dry_run:
        _dry_run(request, stages, as_json)
        return
    refuse_existing(out, overwrite)
    state_file = out.with_name(out.name + ".partial")
    if not resume:
        state_file.unlink(missing_ok=True)
    subject = pipeline.open_subject(request, stages)
    ids = pipeline.calibration_tokens(request, subject, stages)
    measurement = run(
        subject, ids, engine=engine, group_size=request.group_size, estimator=estimator, seed=seed,
        data=data or "written by the model", stages=stages, state_file=state_file, resume=resume,
    )  # fmt: skip
    measurement.save(out)
    state_file.unlink(missing_ok=True)
    summary = {
        "out": str(out),
        "sites": len(measurement.curves),
        "formats": sorted({fmt.name for curve in measurement.curves.values() for fmt in curve.formats}),
        "checks": [
            dict(zip(("site", "format", "fisher", "exact"), row, strict=True)) for row in measurement.header.checks
        ],
        "seconds": stages.seconds,
    }
    if as_json:
        _print_json(summary)
    else:
        Console().print(f"{summary['sites']} sites measured; next: natprec solve {out} --eps 0.05", highlight=False)


@app.command(epilog="Example: **natprec solve folder.measurement --eps 0.01 --out plan.json**")
def solve(
    measurement: Annotated[Path, typer.Argument(help="File written by natprec measure.")],
    eps: Eps = None,
    bits: Bits = None,
    max_size: MaxSize = None,
    eps_scope: ScopeOption = "model",
    engine: Annotated[str | None, typer.Option("--engine", help="Default: the one measured for.")] = None,
    out: Annotated[Path | None, typer.Option("--out", help="Write plan.json here.")] = None,
    as_json: Json = False,
) -> None:
    """From a measurement to a plan, in milliseconds."""
    from natprec.measurement import Measurement
    from natprec.summary import plan_table

    plan = Measurement.load(measurement).solve(
        eps=eps, bits=bits, max_size=max_size, eps_scope=eps_scope, engine=engine
    )
    if out is not None:
        plan.save(out)
    if as_json:
        _print_json(plan.to_json())
    else:
        Console().print(plan_table(plan))


@app.command(epilog="Example: **natprec apply plan.json --model ./folder --data calib.txt --out quantized**")
def apply(
    plan_file: Annotated[Path, typer.Argument(metavar="PLAN", help="plan.json written by natprec solve.")],
    model: Model,
    out: Annotated[Path, typer.Option("--out", help="Folder of the checkpoint.")],
    data: Data = None,
    text_column: Column = None,
    tokens: Tokens = 8192,
    sequence_length: Length = 256,
    rounding: RoundingOption = "gptq",
    seed: Seed = 0,
    overwrite: Overwrite = False,
    device: Device = "cpu",
    trust_remote_code: Trust = False,
    as_json: Json = False,
) -> None:
    """Round a model to a plan and write the checkpoint."""
    from natprec import pipeline
    from natprec.files import new_folder, refuse_existing
    from natprec.progress import Stages
    from natprec.solver import Plan
    from natprec.units import human_bytes

    request = pipeline.Request(
        model, eps=1.0, data=data, text_column=text_column, tokens=tokens, length=sequence_length,
        rounding=rounding, seed=seed, device=device, trust_remote_code=trust_remote_code,
    )  # fmt: skip
    request.check()
    refuse_existing(out, overwrite)
    plan = Plan.load(plan_file)
    stages = Stages()
    subject = pipeline.open_subject(request, stages)
    plan.refuse_other_model(subject.digest, model)
    ids = pipeline.calibration_tokens(request, subject, stages) if rounding != "rtn" else None
    with new_folder(out, overwrite) as folder:
        quantized = pipeline.round_to_plan(subject, plan, ids, rounding, stages)
        pipeline.write(subject, plan, quantized, folder, stages)
    size = pipeline.checkpoint_bytes(out)
    if as_json:
        _print_json({"out": str(out), "stored_bytes": size, "seconds": stages.seconds})
    else:
        Console().print(
            f"{human_bytes(size)} written to {out}; next: natprec verify {out} --model {model}", highlight=False
        )


@app.command(epilog="Example: **natprec verify quantized --model ./folder --eval-data test.txt**")
def verify(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Checkpoint written by natprec.")],
    model: Model,
    eval_data: EvalData = None,
    text_column: Column = None,
    eval_tokens: EvalTokens = 4096,
    sequence_length: Length = 256,
    seed: Seed = 0,
    device: Device = "cpu",
    trust_remote_code: Trust = False,
    as_json: Json = False,
) -> None:
    """Measure a checkpoint's KL on held-out text against the original. Exit code 3 if KL > eps."""
    from natprec import pipeline
    from natprec.progress import Stages
    from natprec.solver import Plan
    from natprec.summary import verification_table

    request = pipeline.Request(
        model, eps=1.0, eval_data=eval_data, text_column=text_column, eval_tokens=eval_tokens,
        length=sequence_length, seed=seed, device=device, trust_remote_code=trust_remote_code,
    )  # fmt: skip
    request.check()
    if not folder.is_dir():
        raise InputError(f"checkpoint {str(folder)!r} does not exist; give the --out folder of natprec quantize")
    plan = Plan.load(folder / "plan.json")
    stages = Stages()
    subject = pipeline.open_subject(request, stages)
    plan.refuse_other_model(subject.digest, model)
    ids = pipeline.held_out_tokens(request, subject, stages)
    verification = pipeline.verify(
        folder, subject, ids, plan, rounding=pipeline.recorded_rounding(folder),
        data=eval_data or "written by the model", stages=stages, seed=seed,
    )  # fmt: skip
    verification.save(folder / "verification.json")
    if as_json:
        _print_json({**asdict(verification), "seconds": stages.seconds})
    else:
        Console().print(verification_table(verification))
    if verification.passed is False:
        raise typer.Exit(3)


def parse_group_size(text: str) -> int | None:
    """A number, `channel` (one scale per row) or `auto` (None: all sizes that fit compete).

    Raises:
        InputError: anything else.
    """
    from natprec.formats.number_format import CHANNEL

    if text == "auto":
        return None
    if text == "channel":
        return CHANNEL
    if text.isdigit() and int(text) > 0:
        return int(text)
    raise InputError(f"group size {text!r}: give 32, 64, 128, channel or auto")


def _dry_run(request: Any, stages: Any, as_json: bool) -> None:
    from natprec import pipeline
    from natprec.estimate import estimate
    from natprec.formats import engine_profile
    from natprec.units import human_bytes, human_seconds

    subject = pipeline.open_subject(request, stages)
    formats = subject.candidates(engine_profile(request.engine), request.group_size)
    with stages.stage("time one batch"):
        result = estimate(subject, request, len({fmt for several in formats.values() for fmt in several}))
    if as_json:
        _print_json(asdict(result))
        return
    console = Console()
    console.print(
        f"{result.weights / 1e6:.1f} M weights in {result.sites} sites, {result.blocks} blocks, "
        f"{result.formats} formats\n"
        f"memory: about {human_bytes(result.memory_bytes)}, of which the model {human_bytes(result.model_bytes)}",
        highlight=False,
    )
    for stage, seconds in result.seconds.items():
        console.print(f"{stage}: about {human_seconds(seconds)}", highlight=False)
    console.print(f"all: about {human_seconds(sum(result.seconds.values()))}", highlight=False)


def _print_json(value: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(value, indent=2, allow_nan=False) + "\n")


def main() -> None:
    """Run the command line; errors that the user can mend are one line and exit code 2."""
    try:
        app()
    except NatprecError as error:
        print(f"natprec: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("natprec: interrupted; nothing half-written was left, --resume goes on", file=sys.stderr)
        sys.exit(130)
