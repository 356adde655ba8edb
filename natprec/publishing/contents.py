"""All files of a checkpoint that a card speaks of, read once and held against each other."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from natprec.benchmark.result import Evaluation
from natprec.errors import InputError
from natprec.evaluation.conclude import promised
from natprec.evaluation.verdict import verdict_of
from natprec.evaluation.verification import Verification
from natprec.evaluation.verify import MEASUREMENT
from natprec.measurement import Header, Measurement
from natprec.pipeline.early_folders import PROCESSORS
from natprec.publishing.base import FILE, Published
from natprec.solver import Plan

VERIFICATION, EVALUATION, REPORT = "verification.json", "eval.json", "report.html"
"""What other commands add to a checkpoint's folder."""


@dataclass(frozen=True)
class Contents:
    """Of a checkpoint's folder.

    Attributes:
        verification, evaluation: None: the folder has none.
        header: of the measurement that lies beside; None: none does.
        licences: names of the files with the original's terms.
        report: whether the page of `natprec report` lies beside.
        sees: whether it takes pictures beside text.
    """

    name: str
    plan: Plan
    verification: Verification | None
    evaluation: Evaluation | None
    header: Header | None
    licences: tuple[str, ...]
    published: Published | None
    report: bool = False
    sees: bool = False

    @property
    def promise(self) -> float | None:
        """The tolerance for the whole model: the plan's, and for a size what the verification was asked to judge by."""
        if self.plan.eps is not None:
            return promised(self.plan)
        return None if self.verification is None else self.verification.eps

    @property
    def verdict(self) -> str | None:
        """Whether what was measured keeps the promise; None: there is none, or nobody has measured."""
        found, promise = self.verification, self.promise
        return None if found is None or promise is None else verdict_of(found.kl_mean, found.kl_ci95[1], promise)

    @property
    def gguf(self) -> bool:
        """Whether the checkpoint is one GGUF file."""
        return self.plan.profile.container == "gguf"


def read_contents(folder: Path) -> Contents:
    """Read a checkpoint's own files.

    Raises:
        InputError: no checkpoint of natprec's; a file changed, or of an unknown version; files of different models.
    """
    if not folder.is_dir():
        raise InputError(f"checkpoint {str(folder)!r} is no folder; give what natprec quantize wrote")
    plan = Plan.load(folder / "plan.json")
    file, asked, measured, published = (folder / name for name in (VERIFICATION, EVALUATION, MEASUREMENT, FILE))
    verification = Verification.load(file) if file.is_file() else None
    evaluation = Evaluation.load(asked) if asked.is_file() else None
    header = Measurement.load(measured).header if measured.is_file() else None
    made = verification.provenance if verification is not None else None
    _refuse_others(folder, plan, {
        "measurement": header.model_digest if header else None,
        "verification": made.model_digest if made else None,
        "evaluation": evaluation.model_digest if evaluation else None,
    })  # fmt: skip
    _refuse_other_runs(folder, plan, verification, evaluation)
    return Contents(
        folder.resolve().name, plan, verification, evaluation, header, _licences(folder),
        Published.load(published) if published.is_file() else None, (folder / REPORT).is_file(),
        any((folder / name).is_file() for name in PROCESSORS),
    )  # fmt: skip


def _refuse_others(folder: Path, plan: Plan, found: dict[str, str | None]) -> None:
    """Stop where files are of different models: `found` says of which weights each is."""
    for what, digest in found.items():
        if digest is not None and not plan.is_of(digest):
            raise InputError(
                f"folder {str(folder)!r} holds files of different models: the plan is of weights {plan.model_digest}, "
                f"the {what} of {digest}; keep each checkpoint's own files"
            )


def _refuse_other_runs(
    folder: Path, plan: Plan, verification: Verification | None, evaluation: Evaluation | None
) -> None:
    """Stop where files are of different checkpoints of one model."""
    if verification is not None and verification.distortion != plan.distortion:
        raise InputError(
            f"folder {str(folder)!r}: the plan limits {plan.distortion!r}, the verification measured "
            f"{verification.distortion!r}; run natprec verify"
        )
    judged, asked = verification.files if verification else {}, evaluation.files if evaluation else {}
    for name in sorted(judged.keys() | asked.keys()) if judged and asked else ():
        if judged.get(name) != asked.get(name):
            raise InputError(
                f"folder {str(folder)!r}: the verification judged {name!r} with sha256 {judged.get(name)}, the "
                f"evaluation asked one with {asked.get(name)}; run natprec eval again"
            )


def _licences(folder: Path) -> tuple[str, ...]:
    """Files with terms: the same that a checkpoint keeps of its original."""
    beginnings = ("license", "licence", "notice", "copying", "use_policy")
    return tuple(sorted(each.name for each in folder.iterdir() if each.name.lower().startswith(beginnings)))
