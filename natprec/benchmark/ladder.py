"""Measured rungs: the verifications and evaluations of checkpoints that were solved from one measurement."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from natprec.errors import InputError
from natprec.evaluation.verification import Verification
from natprec.evaluation.verify import MEASUREMENT
from natprec.pipeline.ladder import LADDER
from natprec.solver import Plan
from natprec.utils.own_files import parsed

EVALUATION = "eval.json"


@dataclass(frozen=True)
class MeasuredRung:
    """A checkpoint beside the measurement that it was solved from.

    Attributes:
        perplexity_increase: of held-out text, relative; None where the model predicts no next token.
        flips: share of the questions whose answer became right or wrong; None where there is no eval.json.
    """

    name: str
    bits: float
    stored_bytes: int
    kl_mean: float
    perplexity_increase: float | None
    top1_agreement: float | None
    flips: float | None


def measured_beside(file: Path, model_digest: str) -> list[MeasuredRung]:
    """The verified checkpoints that a measurement lies in, and those of its ladder, the smallest first.

    Args:
        file: the measurement.
        model_digest: of its model; checkpoints of others are left out.
    """
    place = file.resolve()
    if place.parts[-len(MEASUREMENT.parts) :] != MEASUREMENT.parts:
        return []
    checkpoint = place.parents[len(MEASUREMENT.parts) - 1]
    together = checkpoint.parent if (checkpoint.parent / LADDER).is_file() else None
    folders = [checkpoint] if together is None else sorted(each for each in together.iterdir() if each.is_dir())
    return sorted(_rungs(folders, model_digest), key=lambda rung: rung.bits)


def _rungs(folders: list[Path], model_digest: str) -> Iterator[MeasuredRung]:
    for folder in folders:
        try:
            plan, found = Plan.load(folder / "plan.json"), Verification.load(folder / "verification.json")
        except InputError:  # not judged, or no checkpoint
            continue
        if plan.model_digest == model_digest:
            before, after = found.perplexity_reference, found.perplexity_quantized
            yield MeasuredRung(
                folder.name, plan.bits_per_weight, found.stored_bytes, found.kl_mean,
                None if before is None or after is None else after / before - 1, found.top1_agreement, _flips(folder),
            )  # fmt: skip


def _flips(folder: Path) -> float | None:
    """Over all tasks of eval.json that say which answers are right."""
    try:
        tasks: list[dict[str, Any]] = parsed((folder / EVALUATION).read_bytes())["tasks"]
        known = [each for each in tasks if each["flips_to_wrong"] is not None]
        flipped = sum(each["flips_to_wrong"] + each["flips_to_right"] for each in known)
        return flipped / sum(each["n"] for each in known) if known else None
    except (OSError, ValueError, KeyError, TypeError):
        return None
