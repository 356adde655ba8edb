"""A checkpoint against an original that is larger than memory: each is read once, a block at a time."""

from __future__ import annotations

import contextlib
from pathlib import Path

import torch
from torch import Tensor

from natprec.evaluation.reload import open_quantized
from natprec.evaluation.verify import Comparison, compare
from natprec.progress import Advance
from natprec.solver import Plan
from natprec.staged.passage import passed, state_key
from natprec.subject import Subject
from natprec.texts.windows import data_digest


def compared_by_stage(
    subject: Subject, folder: Path, plan: Plan, ids: Tensor, kept: Path | None, advance: Advance
) -> Comparison:
    """A checkpoint against the original, each read once, a block at a time.

    Args:
        ids: (sequences, time) token ids.
        kept: folder that holds how far both have come; a later call goes on there.
    """
    quantized = open_quantized(folder, subject.staged, ids.device, plan.engine, subject.trusted)
    files = [f"{file.name} {file.stat().st_size} {file.stat().st_mtime_ns}" for file in sorted(folder.glob("*.*"))]
    states = [None if kept is None else kept / f"{name}.safetensors" for name in ("original", "quantized")]
    keys = [state_key(subject.digest, data_digest(ids)), state_key(*files, data_digest(ids))]
    with contextlib.ExitStack() as held, torch.no_grad():
        reference = held.enter_context(passed(subject.staged, ids, advance, states[0], keys[0]))
        other = held.enter_context(passed(quantized, ids, advance, states[1], keys[1]))
        return compare(reference, other, ids, advance, subject.distortion)
