"""`natprec measure`: what every width costs, once."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

from natprec.commands.dry_run import dry_run as show_dry_run
from natprec.commands.options import (
    OUTPUT,
    ArithmeticOption,
    Column,
    Data,
    Device,
    DistortionOption,
    DryRun,
    Engine,
    EstimatorOption,
    GroupSize,
    Json,
    Length,
    Model,
    Overwrite,
    Resume,
    RoundingOption,
    Seed,
    SitesOption,
    Tokens,
    TransformsOption,
    Trust,
    WeightsOption,
    option,
    parse_group_size,
)
from natprec.commands.output import print_json
from natprec.memory import peak_bytes
from natprec.parallel.workers import joined, refuse_many
from natprec.progress import Stages
from natprec.records import public_name
from natprec.run import resumable
from natprec.run.request import Request

EXAMPLES = ("natprec measure --model ./folder --data calib.txt --out folder.measurement",)


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
        show_dry_run(request, Stages(), as_json, judged=False)
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
        "out": public_name(out),
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
        print_json(summary)
    else:
        print(f"{summary['sites']} sites measured; next: natprec solve {out} --eps 0.05")
