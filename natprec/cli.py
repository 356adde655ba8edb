"""The command line: options in, tables or one JSON object out, exit codes for scripts.

Exit codes: 0 done (and the promise kept), 2 a request that cannot be carried out, 3 the promise is
not kept, 130 interrupted.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from natprec import pipeline, resumable, texts
from natprec.comparison.command import compare
from natprec.errors import InputError, NatprecError
from natprec.estimate import estimate
from natprec.evaluation import judge
from natprec.files import REMEDIES, claimed, new_folder, refuse_existing
from natprec.formats import engine_profile
from natprec.inspection.command import inspect
from natprec.measurement import Measurement
from natprec.memory import peak_bytes
from natprec.options import (
    KV,
    METHOD,
    OUTPUT,
    Activations,
    ArithmeticOption,
    Bits,
    Column,
    Data,
    Device,
    DistortionOption,
    DryRun,
    Engine,
    Eps,
    EpsBwd,
    EstimatorOption,
    EvalData,
    EvalTokens,
    GroupSize,
    Json,
    Length,
    MaxSize,
    Model,
    Overwrite,
    PlannedRounding,
    Refine,
    Resume,
    RoundingOption,
    ScopeOption,
    Seed,
    SitesOption,
    Tokens,
    TransformsOption,
    Trust,
    WeightsOption,
    option,
    parse_group_size,
)
from natprec.progress import Stages
from natprec.request import Request, open_subject, refuse_on_disk
from natprec.runtime.command import generate
from natprec.solver import Plan
from natprec.summary import plan_table, result_table, verification_table
from natprec.units import human_bytes, human_seconds
from natprec.workers import joined, refuse_many

UsageError: type[Exception] = typer.BadParameter.__mro__[1]
"""click's error for a wrong option; where it can be imported from depends on typer's version."""

app = typer.Typer(
    name="natprec",
    help="Quantize a language model or encoder to a tolerance: precision is measured, solved and proved, not searched.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)


@app.callback()
def _before(context: typer.Context) -> None:
    """Refuse a launcher for what one process does."""
    if context.invoked_subcommand != "measure":
        refuse_many(f"natprec {context.invoked_subcommand}")


def _examples(*lines: str) -> str:
    return "\n\n".join(("Examples:" if len(lines) > 1 else "Example:", *(f"- `{line}`" for line in lines)))


@app.command(
    epilog=_examples(
        "natprec quantize --model HuggingFaceTB/SmolLM2-135M --eps 0.01",
        "natprec quantize --model ./folder --bits 4.25 --data calib.txt --eval-data test.txt",
        "natprec quantize --model ./folder --max-size 90e6 --out small --json",
        "natprec quantize --model ./folder --eps 0.05 --activations auto --kv 8",
    )
)
def quantize(
    model: Model,
    eps: Eps = None,
    bits: Bits = None,
    max_size: MaxSize = None,
    eps_scope: ScopeOption = "model",
    eps_bwd: EpsBwd = None,
    activations: Activations = "16",
    kv: KV = "16",
    data: Data = None,
    eval_data: EvalData = None,
    text_column: Column = None,
    tokens: Tokens = 8192,
    eval_tokens: EvalTokens = 4096,
    sequence_length: Length = 256,
    group_size: GroupSize = "64",
    engine: Engine = "vllm",
    estimator: EstimatorOption = "fisher",
    distortion: DistortionOption = None,
    rounding: RoundingOption = "gptq",
    transforms: TransformsOption = "auto",
    refine: Refine = 0,
    seed: Seed = 0,
    out: Annotated[Path | None, option("--out", OUTPUT, "Folder of the checkpoint; default MODEL-natprec.")] = None,
    overwrite: Overwrite = False,
    resume: Resume = False,
    dry_run: DryRun = False,
    arithmetic: ArithmeticOption = "auto",
    device: Device = "cpu",
    weights: WeightsOption = "auto",
    trust_remote_code: Trust = False,
    as_json: Json = False,
) -> None:
    """Measure a model, solve its precision, write a checkpoint and prove that it keeps eps.

    Exit code 0: the promise holds. 3: it does not (the checkpoint is written and says so). 2: bad input.
    """
    request = Request(
        model, eps, bits, max_size, eps_scope, data, eval_data, text_column, tokens, eval_tokens, sequence_length,
        parse_group_size(group_size), engine, estimator, rounding, seed, device, trust_remote_code, distortion,
        transforms, refine, sites="weights" if activations == kv == "16" else "all",
        activations=activations, kv=kv, eps_bwd=eps_bwd, weights=weights, arithmetic=arithmetic,
    )  # fmt: skip
    stages = Stages()
    if dry_run:
        request.check()
        _dry_run(request, stages, as_json)
        return
    name = Path(model).resolve().name if Path(model).exists() else model.split("/")[-1]
    folder = out or Path(name.removesuffix(".gguf") + "-natprec")
    measurement, plan, verification = pipeline.quantize(
        request, folder, overwrite=overwrite, resume=resume, stages=stages
    )
    if as_json:
        _print_json({**asdict(verification), "out": str(folder), "seconds": stages.seconds,
                     "few_tokens": plan.few_tokens})  # fmt: skip
    else:
        Console().print(result_table(measurement, plan, verification, stages.seconds))
        print(f"written to {folder}")
    if verification.passed is False:
        raise typer.Exit(3)


@app.command(epilog=_examples("natprec measure --model ./folder --data calib.txt --out folder.measurement"))
def measure(
    model: Model,
    out: Annotated[Path, option("--out", OUTPUT, "File of the measurement.")],
    data: Data = None,
    text_column: Column = None,
    tokens: Tokens = 8192,
    sequence_length: Length = 256,
    group_size: GroupSize = "64",
    engine: Engine = "vllm",
    estimator: EstimatorOption = "fisher",
    rounding: RoundingOption = "gptq",
    transforms: TransformsOption = "auto",
    sites: SitesOption = "weights",
    distortion: DistortionOption = None,
    seed: Seed = 0,
    overwrite: Overwrite = False,
    resume: Resume = False,
    dry_run: DryRun = False,
    arithmetic: ArithmeticOption = "auto",
    device: Device = "cpu",
    weights: WeightsOption = "auto",
    trust_remote_code: Trust = False,
    as_json: Json = False,
) -> None:
    """Measure once: what every width costs at every site. Solve any eps or size from the file."""
    request = Request(
        model, eps=1.0, data=data, text_column=text_column, tokens=tokens, length=sequence_length,
        group_size=parse_group_size(group_size), engine=engine, estimator=estimator, rounding=rounding,
        seed=seed, device=device, trust_remote_code=trust_remote_code, distortion=distortion, transforms=transforms,
        sites=sites, weights=weights, arithmetic=arithmetic,
    )  # fmt: skip
    request.check(judged=False)
    if dry_run:
        refuse_many("natprec measure --dry-run")
        _dry_run(request, Stages(), as_json, judged=False)
        return
    with joined(device) as (workers, own_device):
        stages = Stages(quiet=not workers.first)
        measurement = resumable.measured_together(
            replace(request, device=own_device), out, overwrite, resume, stages, workers
        )
        sent = workers.sent_by_all()
    if not workers.first:
        return
    summary = {
        "out": str(out),
        "sites": len(measurement.curves),
        "few_tokens": {name: curve.tokens for name, curve in measurement.curves.items() if curve.few},
        "formats": sorted({fmt.name for curve in measurement.curves.values() for fmt in curve.formats}),
        "checks": [
            dict(zip(("site", "format", "fisher", "exact"), row, strict=True)) for row in measurement.header.checks
        ],
        "seconds": stages.seconds,
        "peak_bytes": peak_bytes(),
        "processes": workers.size,
        "sent_bytes": sent,
    }
    if as_json:
        _print_json(summary)
    else:
        print(f"{summary['sites']} sites measured; next: natprec solve {out} --eps 0.05")


@app.command(epilog=_examples("natprec solve folder.measurement --eps 0.01 --out plan.json"))
def solve(
    measurement: Annotated[Path, typer.Argument(help="File written by natprec measure.")],
    eps: Eps = None,
    bits: Bits = None,
    max_size: MaxSize = None,
    eps_scope: ScopeOption = "model",
    eps_bwd: EpsBwd = None,
    activations: Activations = "16",
    kv: KV = "16",
    engine: Annotated[str | None, option("--engine", METHOD, "Default: the one measured for.")] = None,
    rounding: PlannedRounding = None,
    out: Annotated[Path | None, option("--out", OUTPUT, "Write plan.json here.")] = None,
    as_json: Json = False,
) -> None:
    """From a measurement to a plan, in milliseconds."""
    plan = Measurement.load(measurement).solve(
        eps=eps, bits=bits, max_size=max_size, eps_scope=eps_scope, engine=engine, rounding=rounding,
        activations=activations, kv=kv, eps_bwd=eps_bwd,
    )  # fmt: skip
    if out is not None:
        plan.save(out)
    if as_json:
        _print_json(plan.to_json())
    else:
        Console().print(plan_table(plan))


@app.command(epilog=_examples("natprec apply plan.json --model ./folder --data calib.txt --out quantized"))
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
        weights=weights, arithmetic=arithmetic,
    )  # fmt: skip
    request.check(judged=False)
    refuse_existing(out, overwrite)
    stages = Stages()
    subject = open_subject(request, stages)
    plan.refuse_other_model(subject.digest, model)
    refuse_on_disk(subject, plan.engine, refine)
    ids = texts.calibration_tokens(request, subject, stages) if rounding != "rtn" or refine else None
    partial = out.with_name(out.name + ".partial")
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
        _print_json({"out": str(out), "stored_bytes": size, "seconds": stages.seconds})
    else:
        print(f"{human_bytes(size)} written to {out}; next: natprec verify {out} --model {model}")


@app.command(epilog=_examples("natprec verify quantized --model ./folder --eval-data test.txt"))
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

    Of a text that may be the one measured on, only the last fifth is taken, which measuring leaves out.
    """
    if not folder.is_dir():
        raise InputError(f"checkpoint {str(folder)!r} does not exist; give the --out folder of natprec quantize")
    plan = Plan.load(folder / "plan.json")
    shared = eval_data if eval_data and judge.may_be_measured_on(folder, eval_data) else None
    request = Request(
        model, eps=1.0, data=shared, eval_data=eval_data, text_column=text_column, eval_tokens=eval_tokens,
        tokens=eval_tokens, length=sequence_length, seed=seed, device=device, trust_remote_code=trust_remote_code,
        distortion=plan.distortion, weights=weights,
    )  # fmt: skip
    request.check()
    stages = Stages()
    subject = open_subject(request, stages)
    plan.refuse_other_model(subject.digest, model)
    ids = texts.held_out_tokens(request, subject, stages)
    partial = folder.with_name(folder.name + ".verify.partial")
    if not resume:
        resumable.forget(partial)
    verification = judge.verify(
        folder, subject, ids, plan, rounding=judge.recorded_rounding(folder),
        data=eval_data or "written by the model", stages=stages, seed=seed, kept=partial / resumable.STAGES,
    )  # fmt: skip
    resumable.forget(partial)
    verification.save(folder / "verification.json")
    if as_json:
        _print_json({**asdict(verification), "seconds": stages.seconds})
    else:
        Console().print(verification_table(plan, verification))
    if verification.passed is False:
        raise typer.Exit(3)


app.command(epilog=_examples("natprec compare --model ./folder --methods gptq,autoround,natprec --out compared"))(
    compare
)
app.command(
    epilog=_examples(
        "natprec inspect --model ./folder --data calib.txt", "natprec inspect --plan plan.json --out inspected"
    )
)(inspect)
app.command(epilog=_examples('natprec generate quantized --prompt "Why is the sky blue?" --greedy --explain'))(generate)


def _dry_run(request: Request, stages: Stages, as_json: bool, judged: bool = True) -> None:
    subject = open_subject(request, stages)
    formats = subject.candidates(engine_profile(request.engine), request.group_size, request.sites)
    with stages.stage("time one batch"):
        result = estimate(subject, request, len({fmt for several in formats.values() for fmt in several}), judged)
    if as_json:
        _print_json(asdict(result))
        return
    console = Console()
    console.print(
        f"{result.weights / 1e6:.1f} M weights in {result.sites} sites, {result.blocks} blocks, "
        f"{result.formats} formats\n"
        f"memory: about {human_bytes(result.memory_bytes)}; the model: {human_bytes(result.model_bytes)} in float32"
        + ("" if subject.staged.weights.whole else ", one block of it in memory at a time"),
        highlight=False,
    )
    if result.disk_bytes:
        console.print(f"disk, for the inputs of all blocks: {human_bytes(result.disk_bytes)}", highlight=False)
    if result.memory_bytes > result.available_bytes:
        stages.note(
            f"memory: {human_bytes(result.available_bytes)} are free, which is not enough; "
            "use --weights disk, fewer --tokens or a larger machine"
        )
    for stage, seconds in result.seconds.items():
        console.print(f"{stage}: about {human_seconds(seconds)}", highlight=False)
    console.print(f"all: about {human_seconds(sum(result.seconds.values()))}", highlight=False)


def _print_json(value: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(value, indent=2, allow_nan=False) + "\n")


def main() -> None:
    """Run the command line; errors that the user can mend are one line and exit code 2."""
    try:
        code = app(standalone_mode=False) or 0
    except NatprecError as error:
        code = _refused(str(error))
    except UsageError as error:
        code = _refused(_usage(error))
    except OSError as error:
        if error.errno not in REMEDIES:
            raise
        code = _refused(f"{error}; {REMEDIES[error.errno]}")
    except KeyboardInterrupt:
        code = 130
    if code == 130:
        print("natprec: interrupted; no output was begun; --resume goes on with what was measured", file=sys.stderr)
    sys.exit(code)


def _refused(text: str) -> int:
    """Say why, on one line; the exit code of a request that cannot be carried out."""
    if text:
        print("natprec: " + " ".join(text.splitlines()), file=sys.stderr)
    return 2


def _usage(error: Any) -> str:
    """What is wrong with an option; nothing where the help has been shown instead."""
    message = error.format_message().strip().rstrip(".")
    where = error.ctx.command_path if error.ctx else "natprec"
    flags = getattr(getattr(error, "param", None), "opts", [])
    for before, given in zip(sys.argv, sys.argv[1:], strict=False):
        if before in flags and "Invalid value" in message and repr(given) not in message:
            message += f": {given!r}"
    return f"{message}; see {where} --help" if message else ""
