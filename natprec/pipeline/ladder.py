"""One checkpoint per size from one measurement: `natprec quantize --ladder 3.5,4,4.5`."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from natprec.config import QuantizeConfig
from natprec.errors import InputError, NatprecError, VerdictError
from natprec.evaluation.verification import Verification
from natprec.pipeline.quantize import opened_run, round_and_verify
from natprec.pipeline.request import check, refuse_impossible_size
from natprec.pipeline.resume import forget
from natprec.pipeline.together import claimed_together, new_folder_together
from natprec.solver import Plan
from natprec.solver.joint import Joint
from natprec.utils.atomic_files import write_json
from natprec.utils.marks import mark_folder
from natprec.utils.progress import Stages
from natprec.utils.workers import Workers

LADDER = "ladder.json"


@dataclass(frozen=True)
class Rung:
    """A checkpoint of a ladder: its folder's name, what was planned, and what was measured."""

    name: str
    plan: Plan
    verification: Verification

    def to_json(self) -> dict[str, Any]:
        """A row of ladder.json."""
        plan, found = self.plan, asdict(self.verification)
        return {
            "name": self.name, "bits": plan.bits_per_weight, "bits_total": plan.bits_per_weight_total,
            "kl_predicted": plan.kl_predicted,
            **{name: found[name] for name in (
                "kl_mean", "kl_ci95", "kl_p99", "perplexity_reference", "perplexity_quantized", "top1_agreement",
                "stored_bytes", "stored_bytes_reference", "data", "texts")},
        }  # fmt: skip


def quantize_ladder(
    config: QuantizeConfig,
    widths: tuple[float, ...],
    out: str | Path,
    *,
    overwrite: bool = False,
    resume: bool = False,
    stages: Stages | None = None,
    workers: Workers | None = None,
) -> list[Rung]:
    """Measure once, then solve, round, write and verify for each size; `out` holds a folder for each, and ladder.json.

    Args:
        config: without a target.
        widths: bits per quantized weight.
    Raises:
        NatprecError: any input that cannot be used; nothing is left half-written.
        VerdictError: the checkpoints are there, but one could not be judged.
    """
    if config.eps is not None or config.bits is not None or config.max_size is not None:
        raise InputError(
            "a ladder is a list of sizes, and another target was given; leave out --eps, --bits, --max-size"
        )
    out, stages, workers = Path(out), stages or Stages(quiet=True), workers or Workers()
    targets = {f"{width:g}bpw": replace(config, bits=width) for width in widths}
    for target in targets.values():
        check(target)
    run = opened_run(replace(config, bits=max(widths)), out, overwrite, stages, workers)
    for target in targets.values():
        refuse_impossible_size(target, run.subject)
    rungs: list[Rung] = []
    unjudged: dict[str, NatprecError] = {}
    with claimed_together(out, workers):
        measurement = run.measured(resume)
        plans: dict[str, tuple[Plan, Joint | None]] = {}
        for name, target in targets.items():
            measurement, planned, joint = run.planned(target, measurement)
            plans[name] = planned, joint
        with new_folder_together(out, overwrite, workers) as folder:
            for name, target in targets.items():
                stages.note(f"{name}:")
                (folder / name).mkdir(exist_ok=True)
                first, joint = plans[name]
                plan, verdict = round_and_verify(target, run, measurement, first, folder / name, joint)
                if workers.first:
                    mark_folder(folder / name)
                if isinstance(verdict, NatprecError):
                    unjudged[name] = verdict
                else:
                    rungs.append(Rung(name, plan, verdict))
            if workers.first:
                write_json(folder / LADDER, {"model": run.subject.name, "rungs": [rung.to_json() for rung in rungs]})
        if workers.first:
            forget(run.partial)
    for name, error in unjudged.items():
        raise VerdictError(
            f"{error}; the checkpoints are complete, but not judged: natprec verify {out / name} --model {config.model}"
        ) from error
    return rungs
