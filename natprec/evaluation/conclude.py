"""From what both models compute to a verification: all texts judge, and the one where the KL is largest decides."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from natprec.errors import ModelError
from natprec.evaluation.judging import Compare, judge
from natprec.evaluation.verdict import FAIL, FirstVerdict, HeldOutText, Portions, verdict_of
from natprec.evaluation.verification import Verification
from natprec.solver import Plan
from natprec.utils.provenance import Provenance


@dataclass(frozen=True)
class Expected:
    """The facts about a checkpoint that its plan or its files give before it is judged.

    Attributes:
        promise: the distortion of the whole model that is allowed; None: only a size was asked for.
        gpu: the generation whose arithmetic is judged; None: as the checkpoint says.
        stored_bytes: on disk; the other fields are those of `Verification`.
    """

    eps: float | None
    promise: float | None
    distortion: str
    kl_predicted: float | None
    stored_bytes: int
    stored_bytes_reference: int
    bits_per_weight: float
    bits_per_weight_total: float
    rounding: str
    margin: float | None = None
    gpu: str | None = None

    @classmethod
    def of(cls, plan: Plan, stored_bytes: int, rounding: str, gpu: str | None = None) -> Expected:
        """The facts that a plan gives."""
        return cls(
            plan.eps, promised(plan), plan.distortion, plan.kl_predicted, stored_bytes, plan.stored_bytes_reference,
            plan.bits_per_weight, plan.bits_per_weight_total, rounding, plan.margin, gpu,
        )  # fmt: skip


@dataclass(frozen=True)
class Judging:
    """The options of a verification: see `natprec.evaluation.verify.verify`."""

    eval_tokens: int | None
    seed: int
    confidence: float
    part: int = 0
    provenance: Provenance | None = None


def promised(plan: Plan) -> float | None:
    """The distortion of the whole model that a plan promises; with eps per site, the sum over sites."""
    return plan.eps if plan.eps is None or plan.eps_scope == "model" else plan.eps * len(plan.sites)


def conclude(
    compare: Compare, texts: Sequence[HeldOutText], expected: Expected, how: Judging, what: str
) -> Verification:
    """Judge on all texts.

    Args:
        what: the checkpoint, for errors.
    Raises:
        ModelError: NaN or Inf.
    """
    rule = Portions.of(how.eval_tokens, expected.promise, len(texts))
    found = judge(texts, rule, compare, how.seed, how.confidence)
    worst = max(found, key=lambda each: each.text.kl_ci95[1])
    if not np.isfinite([each.text.kl_mean for each in found]).all():
        raise ModelError(
            f"checkpoint {what!r}: its predictions or the original's on {worst.text.name!r} are NaN or Inf; "
            "raise --eps or --bits, or check the original model"
        )
    mean, interval = worst.text.kl_mean, worst.text.kl_ci95
    verdict = None if expected.promise is None else verdict_of(mean, interval[1], expected.promise)
    return Verification(
        eps=expected.eps,
        passed=None if verdict is None else verdict != FAIL,
        kl_predicted=expected.kl_predicted,
        stored_bytes=expected.stored_bytes,
        stored_bytes_reference=expected.stored_bytes_reference,
        bits_per_weight=expected.bits_per_weight,
        bits_per_weight_total=expected.bits_per_weight_total,
        data=worst.text.name,
        data_digest=worst.samples.digest,
        rounding=expected.rounding,
        distortion=expected.distortion,
        gpu=expected.gpu,
        verdict=verdict,
        confidence=how.confidence,
        margin=expected.margin,
        first_verdict=FirstVerdict(verdict, mean, interval),
        texts=[each.text for each in found],
        part=how.part,
        length=worst.samples.length,
        eval_tokens=how.eval_tokens,
        provenance=how.provenance,
        **worst.comparison.summary(how.seed, how.confidence),
    )
