"""`natprec quantize`: the whole flow, one command."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from natprec import pipeline
from natprec.commands.dry_run import dry_run as show_dry_run
from natprec.commands.options import (
    KV,
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
    Refine,
    Resume,
    RoundingOption,
    ScopeOption,
    Seed,
    Tokens,
    TransformsOption,
    Trust,
    WeightsOption,
    option,
    parse_group_size,
)
from natprec.commands.output import print_json
from natprec.progress import Stages
from natprec.records import public_name
from natprec.run.request import Request
from natprec.run.summary import result_table

EXAMPLES = (
    "natprec quantize --model HuggingFaceTB/SmolLM2-135M --eps 0.01",
    "natprec quantize --model ./folder --bits 4.25 --data calib.txt --eval-data test.txt",
    "natprec quantize --model ./folder --max-size 90e6 --out small --json",
    "natprec quantize --model ./folder --eps 0.05 --activations auto --kv 8",
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
    4: the checkpoint is written, but could not be judged.
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
        show_dry_run(request, stages, as_json)
        return
    name = Path(model).resolve().name if Path(model).exists() else model.split("/")[-1]
    folder = out or Path(name.removesuffix(".gguf") + "-natprec")
    measurement, plan, verification = pipeline.quantize(
        request, folder, overwrite=overwrite, resume=resume, stages=stages
    )
    if as_json:
        print_json({**asdict(verification), "out": public_name(folder), "seconds": stages.seconds,
                     "few_tokens": plan.few_tokens})  # fmt: skip
    else:
        Console().print(result_table(measurement, plan, verification, stages.seconds))
        print(f"written to {folder}")
    if verification.passed is False:
        raise typer.Exit(3)
