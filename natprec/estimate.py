"""The dry run: memory and time before hours are spent, from one timed batch."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from natprec.measurement.measure import CHECK_SEQUENCES, CHECK_SITES
from natprec.measurement.observers import MIN_UNITS, UNIT_MEMORY
from natprec.measurement.sweep import batches
from natprec.rounding.refine import SEQUENCES

if TYPE_CHECKING:
    from natprec.request import Request
    from natprec.subject import Subject

SWEEP_FORWARDS = 4.3
"""Forward-equivalents of the sweep: forward, recomputed forward, backward (2), and the contraction."""

GPTQ_FORWARDS = 2.3
"""Hessians, propagation, and the rounding itself."""

REFINE_FORWARDS = 4.5
"""Of each refined token: the original's forward, the rounded model's, its backward (2), and the distortion."""


@dataclass(frozen=True)
class Estimate:
    """What a run will take.

    Attributes:
        memory_bytes: peak resident memory, the model included.
        seconds: stage → seconds, scaled from one batch that was timed here.
        forward_equivalents: forwards of the whole calibration text.
    """

    weights: int
    sites: int
    blocks: int
    formats: int
    model_bytes: int
    memory_bytes: int
    seconds: dict[str, float]
    forward_equivalents: float


@torch.no_grad()
def estimate(subject: Subject, request: Request, formats: int) -> Estimate:
    """Time one batch and scale it."""
    embedding: Any = subject.model.get_input_embeddings()  # type: ignore[operator]
    size = len(batches(1 << 20, request.length)[0])
    ids = torch.randint(
        len(embedding.weight), (size, request.length), generator=torch.Generator().manual_seed(request.seed)
    )
    ids = ids.to(next(subject.model.parameters()).device)
    subject.staged.output(ids[:1])
    start = time.perf_counter()
    output = subject.staged.output(ids)
    per_token = (time.perf_counter() - start) / ids.numel()
    own_text = request.tokens // (2 if request.data else 1) + (
        0 if request.eval_data or request.data else request.eval_tokens
    )
    own_text = own_text if subject.kind == "causal" else 0
    check = CHECK_SITES * 0.5 + 1
    gptq = GPTQ_FORWARDS if request.rounding == "gptq" else 0.0
    seconds = {
        "text": own_text * per_token * 4,
        "measure": request.tokens * per_token * SWEEP_FORWARDS,
        "spot check": CHECK_SEQUENCES * request.length * per_token * check,
        "round": request.tokens * per_token * gptq,
        "refine": request.refine * SEQUENCES * request.length * per_token * REFINE_FORWARDS,
        "verify": 2 * request.eval_tokens * per_token,
    }
    return Estimate(
        weights=sum(site.elements for site in subject.sites),
        sites=len(subject.sites),
        blocks=len(subject.staged.blocks),
        formats=formats,
        model_bytes=sum(parameter.numel() * 4 for parameter in subject.model.parameters()),
        memory_bytes=_memory(subject, request, 4 * output.numel()),
        seconds=seconds,
        forward_equivalents=SWEEP_FORWARDS + gptq,
    )


def _memory(subject: Subject, request: Request, output: int) -> int:
    """The larger of the sweep's peak and the verification's; `output` is the bytes of a batch's logits or the like."""
    model = sum(parameter.numel() * 4 for parameter in subject.model.parameters())
    sequences = max(1, request.tokens // request.length)
    by_stage: dict[int, int] = {}
    for site in subject.sites:
        units = min(sequences, max(MIN_UNITS, UNIT_MEMORY // (4 * site.elements)))
        by_stage[site.stage] = by_stage.get(site.stage, 0) + 4 * site.elements * units
    hidden = getattr(subject.model.config, "hidden_size", 0)
    inputs = 4 * request.tokens * hidden * (len(subject.staged.blocks) + 2)
    sweep = model + inputs + max(by_stage.values(), default=0) + 5 * output
    return max(sweep, 3 * model + 6 * output)
