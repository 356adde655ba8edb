"""The whole flow: read this first.

    model + text → sites → measurement → solve → plan → rounding → checkpoint → verification

`quantize` is the main job. Each step is also a function of its own, and a command of the CLI.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass, replace
from pathlib import Path

from natprec.checkpoints.dense_reader import UNPACKED
from natprec.checkpoints.trial import refusal
from natprec.config import QuantizeConfig
from natprec.data.seen import pieces_of
from natprec.errors import BudgetError, NatprecError, VerdictError
from natprec.evaluation.conclude import promised
from natprec.evaluation.verdict import FirstVerdict
from natprec.evaluation.verification import Verification
from natprec.evaluation.verify import MEASUREMENT, tightened, verify
from natprec.measurement import Measurement
from natprec.measurement.subject import Subject
from natprec.pipeline.components import judge_trajectory, settled
from natprec.pipeline.early import inputs
from natprec.pipeline.held_out import PARTS, HeldOut, held_out
from natprec.pipeline.joint import predicted_by, with_joint
from natprec.pipeline.learning import Learning, learning_asked
from natprec.pipeline.pilot import with_pilot
from natprec.pipeline.provenance import again, command_of
from natprec.pipeline.request import check, refuse_impossible_size, refuse_on_disk, solve_for, tell_leftovers
from natprec.pipeline.resume import forget, measured, opened_together, resume_folder_of
from natprec.pipeline.rounded import round_and_write
from natprec.pipeline.samples import calibration_samples
from natprec.pipeline.together import claimed_together, made_by_first, new_folder_together
from natprec.solver import Plan
from natprec.solver.joint import Joint
from natprec.tasks import Samples
from natprec.utils.atomic_files import clear_stale, refuse_existing
from natprec.utils.claims import beside
from natprec.utils.marks import refuse_inputs
from natprec.utils.progress import Stages
from natprec.utils.workers import Workers


def quantize(
    config: QuantizeConfig,
    out: str | Path,
    *,
    overwrite: bool = False,
    resume: bool = False,
    stages: Stages | None = None,
    workers: Workers | None = None,
) -> tuple[Measurement, Plan, Verification]:
    """Measure, solve, round, write and verify; one correction if the promise fails.

    `out` appears when everything is done. Beside it `out.partial` keeps the measurement, or its
    progress, until then: see `measured`. Several processes call this and share the work; process 0 alone writes.

    Raises:
        NatprecError: any input that cannot be used; nothing is left half-written.
        VerdictError: the checkpoint is there, but could not be judged.
    """
    out, workers, config = Path(out), workers or Workers(), settled(config)
    run = opened_run(config, out, overwrite, stages or Stages(quiet=True), workers)
    with claimed_together(out, workers):
        measurement = run.measured(resume)
        measurement, plan, joint = run.planned(config, measurement)
        with new_folder_together(out, overwrite, workers) as folder:
            plan, verdict = round_and_verify(config, run, measurement, plan, folder, joint)
            if isinstance(verdict, Verification):
                judge_trajectory(folder, run.subject, config.seed, run.stages)
        if workers.first:
            forget(run.partial)
    if isinstance(verdict, NatprecError):
        source = config.eval_data or config.source
        why = str(verdict).removesuffix("; quantize again").replace(str(folder), str(out))
        raise VerdictError(
            f"{why}; the checkpoint is complete, but not judged: natprec verify {out} --model {config.model}"
            + (f" --eval-data {source}" if source else "")
        ) from verdict
    return measurement, plan, verdict


@dataclass(frozen=True)
class Run:
    """The model and texts of a run, read before anything is measured.

    Attributes:
        samples: to measure on; `judging`: the text that judges; `learning`: what is learned from, if asked for.
        tried: whether transformers is asked to load the checkpoint.
        partial: the folder that a resumed run goes on from.
    """

    config: QuantizeConfig
    subject: Subject
    samples: Samples
    judging: HeldOut
    stages: Stages
    tried: bool
    partial: Path
    learning: Learning | None = None

    def measured(self, resume: bool) -> Measurement:
        """The measurement, made now or found."""
        return measured(self.config, self.subject, self.samples, self._kept, resume, self.stages)

    def solved(self, config: QuantizeConfig, measurement: Measurement) -> Plan:
        """The plan for a configuration's target; the measurement of one out of reach is kept."""
        try:
            with self.stages.stage("solve"):
                return solve_for(config, measurement)
        except BudgetError as error:
            raise BudgetError(
                f"{error}; kept for natprec solve, or --resume with another target: {self._kept}"
            ) from error

    def planned(self, config: QuantizeConfig, measurement: Measurement) -> tuple[Measurement, Plan, Joint | None]:
        """The plan to round, and what it and later ones are predicted by: see `natprec.pipeline.joint`.

        Of the measurement it is known afterwards what learned rounding leaves, where that is asked for.
        """
        plan = self.solved(config, measurement)
        known = with_pilot(config, self.subject, measurement, plan, self.samples, self.stages)
        if known is not measurement:
            if self.subject.segmented.workers.first:
                known.save(self._kept)
            measurement, plan = known, self.solved(config, known)
        return measurement, *with_joint(
            config, self.subject, measurement, plan, self.samples, self.stages, self.partial
        )

    @property
    def _kept(self) -> Path:
        return self.partial / "measurement.safetensors"


def opened_run(
    config: QuantizeConfig, out: Path, overwrite: bool, stages: Stages, workers: Workers | None = None
) -> Run:
    """Check, load the model and read the texts.

    Raises:
        NatprecError: any input that cannot be used.
    """
    check(config)
    refuse_inputs(out, inputs(config))
    workers = workers or Workers()
    if workers.first:
        clear_stale(out)
        refuse_existing(out, overwrite)
    subject = opened_together(config, stages, workers)
    refuse_on_disk(subject, config)
    refuse_impossible_size(config, subject)
    tell_leftovers(subject, config.engine, stages)
    why = None if config.engine == "transformers" else refusal(subject, config.engine)  # else refused by now
    if why is not None:
        stages.note(UNPACKED.format(why))
    samples = made_by_first(lambda: calibration_samples(config, subject, stages), subject)
    partial = beside(out, ".partial")
    learning = learning_asked(config, subject, samples, stages, partial)
    judging = held_out(config, subject, stages, pieces_of(samples) if learning is None else learning.seen(samples))
    return Run(config, subject, samples, judging, stages, why is None, partial, learning)


def round_and_verify(
    config: QuantizeConfig,
    run: Run,
    measurement: Measurement,
    plan: Plan,
    folder: Path,
    joint: Joint | None = None,
) -> tuple[Plan, Verification | NatprecError]:
    """Round, write and verify; if the promise fails, tighten once by promised / measured and repeat, on the text's
    other part.

    Args:
        joint: what plans are predicted by; None: the sum over sites.
    Returns:
        The plan, and the verdict or why there is none: hours of work are not thrown away for that.
    """
    subject, judging, stages = run.subject, run.judging, run.stages
    writes = subject.segmented.workers.first
    resume_folder = resume_folder_of(run.partial, subject)
    verification: Verification | None = None
    first: FirstVerdict | None = None
    origin = again(plan.provenance, subject, command_of("quantize", config), config)
    try:
        for corrections in range(PARTS):
            subject = subject.with_head(plan.untied)
            round_and_write(
                subject, plan, run.samples, config.rounding, folder, resume_folder, stages, run.learning, config.seed
            )
            try:
                verification = verify(
                    folder, subject, judging.part(corrections), plan, rounding=config.rounding, stages=stages,
                    eval_tokens=config.eval_tokens, seed=config.seed, confidence=config.confidence, part=corrections,
                    provenance=origin, resume_folder=resume_folder, tried=run.tried,
                )  # fmt: skip
            except NatprecError as error:
                if writes:
                    measurement.save(folder / MEASUREMENT)
                return plan, error
            first = first or verification.first_verdict
            verification = replace(verification, corrections=corrections, first_verdict=first)
            promise = promised(plan)
            if verification.passed is not False or corrections or promise is None or plan.eps_solved is None:
                break
            if config.bits is not None or config.max_size is not None:
                break  # the size decides the plan; a tighter tolerance would give the same one
            if not judging.part(corrections + 1):
                stages.note(
                    f"measured {verification.kl_mean:.4g} > {promise:g}, and no text is left to judge a correction on"
                )
                break
            eps = tightened(plan, verification.kl_mean)
            try:
                plan = predicted_by(joint, solve_for(config, measurement, eps))
            except BudgetError:
                stages.note(f"measured {verification.kl_mean:.4g} > {promise:g}, and no wider formats are left")
                break
            stages.note(f"measured {verification.kl_mean:.4g} > {promise:g}: solving once more, for {eps:.4g}")
            if writes:
                _empty(folder)
    finally:
        subject.with_head(bool(run.subject.untied))  # the model is that of the run again
    assert verification is not None
    if writes:
        measurement.save(folder / MEASUREMENT)
        verification.save(folder / "verification.json")
    return plan, verification


def _empty(folder: Path) -> None:
    """A correction may write fewer files (shards) than the first try did."""
    for entry in folder.iterdir():
        shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
