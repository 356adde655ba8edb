"""Learning against the end: a whole rounded model comes nearer to the original's output, by gradient, from fresh text.

Rounding sees a layer, or a block; what counts is the model's output. Here everything that a checkpoint stores anyway
moves by the slope of the distortion at the output, as in distillation into few bits (LLM-QAT: Liu et al. 2023,
arXiv:2305.17888; PV-tuning: Malinovskii et al. 2024, arXiv:2405.14852), but in steps so small that what the rounding
before had made up for is not undone. Each step sees other text, for text that is seen again teaches less. Text that
was held back judges on the way: the best of what it has judged is kept, which may be the rounding itself, and learning
ends when it finds nothing better for a while.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from natprec.quantizers import QuantizedTensor
from natprec.rounding.learnable import Learnable
from natprec.rounding.learning_state import Kept, Progress, under
from natprec.rounding.teacher import HeldBack, Teacher
from natprec.rounding.together import codes_from, tensors_of
from natprec.tasks import Samples
from natprec.utils.progress import Advance
from natprec.utils.workers import Workers

STEP_TOKENS = 1024
"""Of text in each step."""

JUDGMENTS = 12
"""How often text that was held back judges, spread evenly over the steps or the time."""

WARM = 5
"""Steps in which the rates rise, while Adam's means settle."""


@dataclass(frozen=True)
class Budget:
    """How long learning may go on.

    Attributes:
        steps: at most.
        minutes: at most; None: as long as the steps take.
    """

    steps: int
    minutes: float | None = None

    def spent(self, step: int, seconds: float) -> float:
        """From 0 to 1, or a little beyond."""
        return max(step / self.steps, 0.0 if self.minutes is None else seconds / (60 * self.minutes))


@dataclass(frozen=True)
class Outcome:
    """What learning came to.

    Attributes:
        codes: site name → the best codes and scales, which the model holds; the rounding's if nothing was better.
        before, after: distortion of text that was held back.
        steps, seconds: that were taken.
    """

    codes: dict[str, QuantizedTensor]
    before: float
    after: float
    steps: int
    seconds: float


@dataclass
class _Best:
    """The best that has been judged: codes, and the small parameters beside them."""

    codes: dict[str, QuantizedTensor]
    small: dict[str, Tensor]

    def tensors(self) -> dict[str, Tensor]:
        codes = {f"best/{name}": value for name, value in tensors_of(self.codes).items()}
        return codes | {f"small/{name}": value.cpu().contiguous() for name, value in self.small.items()}

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor], present: Learnable) -> _Best:
        formats, device = present.formats, present.parameters[0].device
        small = {name: tensors[f"small/{name}"].to(device) for name in present.small}
        return cls(codes_from(under("best/", tensors), formats, device), small)


def learn_to_end(
    learnable: Learnable,
    teacher: Teacher,
    held_back: HeldBack,
    batch_of: Callable[[int], Samples],
    budget: Budget,
    *,
    kept: Kept,
    found: tuple[Mapping[str, Tensor], Progress] | None = None,
    beside: Mapping[str, Tensor],
    advance: Advance = lambda step: None,
    say: Callable[[str], None] = lambda line: None,
) -> Outcome:
    """Learn until the budget is spent, or nothing better has been found for a while; the model is the best found.

    Several processes call this, each with the same text: a step's is shared out among them.

    Args:
        learnable: at the rounding.
        batch_of: the text of each step, by its number; the same whenever it is asked for.
        kept: where progress is kept after each judgment; `beside`: what goes into the first file as it is.
        found: what an earlier run kept.
        advance: called once per step; say: told what each judgment found.
    """
    if found is None:
        progress, best = Progress(judged=[held_back.distortion()]), _Best(learnable.codes, learnable.small)
        _keep(kept, learnable, best, beside, progress)
    else:
        tensors, progress = found
        learnable.load(tensors)
        best = _Best.of(tensors, learnable)
        for step in range(progress.step):
            advance(f"step {step + 1}")
    start, workers = time.monotonic() - progress.seconds, learnable.workers
    while (spent := budget.spent(progress.step, progress.seconds)) < 1 and not progress.stalled:
        text = batch_of(progress.step)
        share = workers.share(len(text))
        if share:
            own = text[share.start : share.stop]
            teacher.descend(own, learnable.parameters, fraction=len(share) / len(text))
        learnable.step(min(1.0, (progress.step + 1) / WARM) * (1 - spent))
        progress.step += 1
        progress.seconds = _of_first(workers, time.monotonic() - start)
        advance(f"step {progress.step}, {progress.gain}")
        spent = budget.spent(progress.step, progress.seconds)
        if spent * JUDGMENTS >= len(progress.judged):
            progress.judged.append(held_back.distortion())
            if progress.best == len(progress.judged) - 1:
                best = _Best(learnable.codes, learnable.small)
            say(f"learned {min(spent, 1):.0%}: {progress.judged[-1]:.4g} on text held back, {progress.gain}")
            _keep(kept, learnable, best, beside, progress)
    learnable.put_back(best.codes, best.small)
    return Outcome(best.codes, progress.judged[0], min(progress.judged), progress.step, progress.seconds)


def _of_first(workers: Workers, seconds: float) -> float:
    """One clock for all processes: that of the first."""
    (found,) = workers.all_sum(torch.tensor([seconds if workers.first else 0.0], dtype=torch.float64))
    return float(found)


def _keep(kept: Kept, learnable: Learnable, best: _Best, beside: Mapping[str, Tensor], progress: Progress) -> None:
    shared = {**beside, **best.tensors()} if learnable.workers.first else {}
    kept.write({**shared, **learnable.tensors()}, progress)
