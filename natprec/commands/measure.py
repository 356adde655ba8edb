"""`natprec measure`: what every width costs, once."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

from natprec.commands.options import DryRun, Json, Overwrite, Resume, configured, own
from natprec.config import QuantizeConfig
from natprec.utils.options import OUTPUT

EXAMPLES = ("natprec measure --model ./folder --data calib.txt --out folder.measurement",)


@configured
def measure(
    config: QuantizeConfig,
    out: Annotated[Path, own("--out", OUTPUT, "File of the measurement.")],
    overwrite: Overwrite = False,
    resume: Resume = False,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Measure once: what every width costs at every site. Solve any eps or size from the file."""
    from natprec.pipeline.early import refuse_early

    config.check(judged=False, solved=False)
    refuse_early(config, judged=False)
    from natprec.commands.dry_run import dry_run as show_dry_run
    from natprec.commands.output import print_json
    from natprec.pipeline import resume as resumable
    from natprec.pipeline.request import check
    from natprec.utils.launcher import refuse_many
    from natprec.utils.meeting import joined
    from natprec.utils.memory import peak_bytes
    from natprec.utils.progress import Stages
    from natprec.utils.records import public_name

    check(config, judged=False, solved=False)
    if dry_run:
        refuse_many("natprec measure --dry-run")
        show_dry_run(config, Stages(), as_json, judged=False)
        return
    with joined(config.device) as (workers, own_device):
        stages = Stages(quiet=not workers.first)
        measurement = resumable.measured_together(
            replace(config, device=own_device), out, overwrite, resume, stages, workers
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
