"""The text that a rounded model learns from: windows of the user's text that nothing was measured on, in a drawn order,
between windows that the model itself writes.

Reading is quick and ends; writing goes on for ever, and each window of it takes as long as two that are learned from.
So most windows are read while there are new ones, and most are written afterwards, between those that are read again.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from natprec.config import QuantizeConfig
from natprec.data.seen import Pieces, pieces_of
from natprec.data.windows import generate_tokens
from natprec.errors import InputError
from natprec.measurement.subject import Subject
from natprec.models.weights import put_in
from natprec.pipeline.samples import unmeasured_samples
from natprec.pipeline.together import made_by_first
from natprec.rounding.to_end import STEP_TOKENS
from natprec.tasks import Samples
from natprec.tasks.samples import COUNTED
from natprec.utils.progress import Stages
from natprec.utils.seeds import LIMIT, derived

WRITTEN, AFTERWARDS = 0.125, 0.75
"""Of all windows, those that the model writes: while there is text that was not read yet, and later."""

TOGETHER = 64
"""Windows that the model writes at once."""

HELD_BACK, PART = 8, 8
"""Windows of each kind that judge, but at most one of so many that were read."""

MOST = 8192
"""Windows that are read at most."""

_STREAM = 0x5851F42D4C957F2D
"""Keeps the seeds of this text apart from those of all others."""


@dataclass
class LearningText:
    """Batches by the number of their step, the same whenever they are asked for.

    Attributes:
        read: windows of text, without those that judge.
        judging: windows that judge.
        fresh: whether nothing of `read` was measured on.
        pieces: of all that was read, whether it teaches or judges: see `natprec.data.seen`.
        weights: of the original model, by name, which writes while the model holds others.
    """

    subject: Subject
    read: Samples
    judging: Samples
    seed: int
    pieces: Pieces
    fresh: bool = True
    weights: Mapping[str, Tensor] = field(default_factory=dict)
    _written: tuple[int, Samples] | None = field(default=None, init=False)

    @property
    def step_tokens(self) -> int:
        """Tokens of a step: about `STEP_TOKENS`."""
        return self._windows * self.read.length

    @property
    def _windows(self) -> int:
        return max(1, STEP_TOKENS // self.read.length)

    def batch(self, step: int) -> Samples:
        """The text of a step."""
        rows = [self._window(number) for number in range(step * self._windows, (step + 1) * self._windows)]
        found = rows[0]
        for row in rows[1:]:
            found = found.followed_by(row)
        return found

    def _window(self, number: int) -> Samples:
        """One of the endless row of windows, of which those that are read and those that are written count apart."""
        if not self.subject.writes:
            return self._given(number)
        new = int(len(self.read) / (1 - WRITTEN)) if self.fresh else 0
        share, first, before = (WRITTEN, 0, 0) if number < new else (AFTERWARDS, new, int(new * WRITTEN))
        written = before + int((number - first) * share)
        if before + int((number + 1 - first) * share) > written:
            return self._own(written)
        return self._given(number - written)

    def _given(self, number: int) -> Samples:
        turn, place = divmod(number, len(self.read))
        order = torch.randperm(len(self.read), generator=torch.Generator().manual_seed(_seed(self.seed, turn)))
        return self.read[order[place : place + 1].to(self.read.device)]

    def _own(self, number: int) -> Samples:
        batch, row = divmod(number, TOGETHER)
        if self._written is None or self._written[0] != batch:
            with put_in(self.subject.model, dict(self.weights)):
                self._written = batch, written(self.subject, TOGETHER, self.read.length, _seed(self.seed, batch + 1))
        return self._written[1][row : row + 1].to(self.read.device)


def _seed(seed: int, index: int) -> int:
    return (derived(seed, index) ^ _STREAM) % LIMIT


def written(subject: Subject, count: int, length: int, seed: int) -> Samples:
    """So many windows of the model's own text; in float32, since each token would narrow all weights anew.

    Of several processes the first one writes.
    """

    def write() -> Samples:
        return Samples.text(generate_tokens(subject.model, subject.tokenizer, count, length, seed, together=count))

    return made_by_first(write, subject)


def learning_text(
    config: QuantizeConfig, subject: Subject, samples: Samples, stages: Stages, more: bool | Samples | None = True
) -> LearningText:
    """Read the text, and write what judges of the model's own.

    Args:
        samples: what was measured on; it serves again where there is no other text.
        more: other text than the samples, or whether there may be some to be read.
    """
    given = more if isinstance(more, Samples) else _unmeasured(config, subject, samples, stages) if more else None
    read = _without_pictures(samples) if given is None else given
    subject.segmented.workers.refuse_difference("text to learn from", read.digest.encode())
    pieces, step = pieces_of(read), max(PART, len(read) // HELD_BACK)
    judges = torch.arange(len(read), device=read.device) % step == step - 1
    judging, read = (read[judges], read[~judges]) if judges.any() else (read, read)
    if subject.writes:
        with stages.stage("text to judge learning by, written by the model"):
            own = written(subject, min(HELD_BACK, len(judging)), samples.length, _seed(config.seed, 0))
        judging = judging.followed_by(own.to(judging.device))
    return LearningText(subject, read, judging, config.seed, pieces, fresh=given is not None)


def _unmeasured(config: QuantizeConfig, subject: Subject, samples: Samples, stages: Stages) -> Samples | None:
    try:
        return unmeasured_samples(config, subject, stages, MOST, pieces_of(samples))
    except InputError as error:
        stages.note(f"no other text to learn from than that which was measured on: {error}")
        return None


def _without_pictures(samples: Samples) -> Samples:
    if COUNTED not in samples.tensors:
        return samples
    return Samples.text(samples.ids[samples.tensors[COUNTED].all(1)])
