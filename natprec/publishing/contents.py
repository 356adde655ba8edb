"""All files of a checkpoint that a card speaks of, read once and held against each other."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from natprec.errors import InputError
from natprec.evaluation.conclude import promised
from natprec.evaluation.verdict import verdict_of
from natprec.evaluation.verification import Verification
from natprec.evaluation.verify import MEASUREMENT
from natprec.measurement import Header, Measurement
from natprec.pipeline.early import PROCESSORS
from natprec.publishing.base import FILE, Published
from natprec.solver import Plan
from natprec.transforms import rotated_digest

VERIFICATION = "verification.json"


@dataclass(frozen=True)
class Contents:
    """Of a checkpoint's folder.

    Attributes:
        verification: None: the folder has none.
        header: of the measurement that lies beside; None: none does.
        licences: names of the files with the original's terms.
        sees: whether it takes pictures beside text.
    """

    name: str
    plan: Plan
    verification: Verification | None
    header: Header | None
    licences: tuple[str, ...]
    published: Published | None
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
    file, measured, published = folder / VERIFICATION, folder / MEASUREMENT, folder / FILE
    verification = Verification.load(file) if file.is_file() else None
    header = Measurement.load(measured).header if measured.is_file() else None
    _refuse_others(folder, plan, verification, header)
    return Contents(
        folder.resolve().name, plan, verification, header, _licences(folder),
        Published.load(published) if published.is_file() else None,
        any((folder / name).is_file() for name in PROCESSORS),
    )  # fmt: skip


def _refuse_others(folder: Path, plan: Plan, verification: Verification | None, header: Header | None) -> None:
    """Stop where files are of different models, or of different runs."""
    made = verification.provenance if verification is not None else None
    found = {
        "measurement": header.model_digest if header else None,
        "verification": made.model_digest if made else None,
    }
    for what, digest in found.items():
        if digest is not None and plan.model_digest not in (digest, rotated_digest(digest, plan.rotation)):
            raise InputError(
                f"folder {str(folder)!r} holds files of different models: the plan is of weights {plan.model_digest}, "
                f"the {what} of {digest}; keep each checkpoint's own files"
            )
    if verification is not None and verification.distortion != plan.distortion:
        raise InputError(
            f"folder {str(folder)!r}: the plan limits {plan.distortion!r}, the verification measured "
            f"{verification.distortion!r}; run natprec verify"
        )


def _licences(folder: Path) -> tuple[str, ...]:
    """Files with terms: the same that a checkpoint keeps of its original."""
    beginnings = ("license", "licence", "notice", "copying", "use_policy")
    return tuple(sorted(each.name for each in folder.iterdir() if each.name.lower().startswith(beginnings)))
