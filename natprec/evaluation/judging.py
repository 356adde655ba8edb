"""Texts judge in portions, until the interval of the one that decides is narrow enough: see `verdict`."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import reduce

from natprec.errors import InputError
from natprec.evaluation.verdict import HeldOutText, JudgedText, Portions
from natprec.evaluation.verification import Comparison, joined
from natprec.tasks import Samples

Compare = Callable[[Samples, int], Comparison]
"""Compares both models on samples; the number of the portion names what a killed run leaves."""

FILES = 1000
"""Between the numbers of the first portions of two texts."""


@dataclass
class GivenText:
    """Samples that are there: `windows`, of a text its token ids."""

    name: str
    windows: Samples
    digest: str | None = None
    _taken: int = field(default=0, init=False)

    def take(self, tokens: int) -> Samples | None:
        """The next windows: see `HeldOutText`."""
        wanted = max(1, -(-tokens // self.windows.length))
        found = self.windows[self._taken : self._taken + wanted]
        self._taken += len(found)
        return found if len(found) else None


@dataclass(frozen=True)
class Judged:
    """The result on one text; `samples` are those of all its portions."""

    text: JudgedText
    comparison: Comparison
    samples: Samples


def judge(texts: Sequence[HeldOutText], rule: Portions, compare: Compare, seed: int, confidence: float) -> list[Judged]:
    """Compare on a portion of each text, then on more of the one that decides, until its interval is narrow enough.

    The text whose interval ends highest decides. Others get more only if they come to decide: the model writes its own
    text slowly.

    Raises:
        InputError: a text is empty.
    """
    readings = [_Reading(text, compare, seed, confidence, FILES * number) for number, text in enumerate(texts)]
    for reading in readings:
        if not reading.add(rule.first):
            raise InputError(f"no held-out tokens to verify on in {reading.text.name!r}; give more --eval-data")
    while True:
        worst = max(readings, key=lambda reading: reading.interval[1])
        others = sum(reading.tokens for reading in readings if reading is not worst)
        low, high = worst.interval
        wanted = rule.more(worst.tokens, others, (high - low) / 2)
        if wanted <= 0 or not worst.add(wanted):
            return [reading.judged() for reading in readings]


class _Reading:
    """A text as far as it was read, with its comparisons."""

    def __init__(self, text: HeldOutText, compare: Compare, seed: int, confidence: float, first: int) -> None:
        self.text, self._compare, self._seed, self._confidence = text, compare, seed, confidence
        self._first = first
        self._parts: list[Comparison] = []
        self._read: list[Samples] = []
        self.interval = (math.nan, math.nan)

    @property
    def tokens(self) -> int:
        return sum(part.tokens for part in self._parts)

    def add(self, tokens: int) -> bool:
        """Compare on the next so many tokens; False: none are left."""
        samples = self.text.take(tokens)
        if samples is None:
            return False
        self._parts.append(self._compare(samples, self._first + len(self._parts)))
        self._read.append(samples)
        self.interval = joined(self._parts).interval(self._seed, self._confidence)
        return True

    def judged(self) -> Judged:
        found, samples = joined(self._parts), reduce(Samples.followed_by, self._read)
        digest = self.text.digest or samples.digest
        text = JudgedText(self.text.name, digest, found.tokens, float(found.kl.mean()), self.interval)
        return Judged(text, found, samples)
