"""Texts judge one after the other, each in portions, until its interval is narrow enough: see `verdict`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import reduce

from natprec.errors import InputError
from natprec.evaluation.verdict import HeldOutText, JudgedText, Portions
from natprec.evaluation.verification import Comparison, joined
from natprec.tasks import Samples

Compare = Callable[[Samples, int], Comparison]
"""Compares both models on samples; the number of the portion names what a killed run leaves."""


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
    """What a text said: `samples` of all its portions."""

    text: JudgedText
    comparison: Comparison
    samples: Samples


def judge(text: HeldOutText, rule: Portions, compare: Compare, seed: int, confidence: float, first: int) -> Judged:
    """Compare on portions of a text until its interval is narrow enough, or the rule or the text ends.

    Args:
        first: number of the first portion.
    Raises:
        InputError: the text is empty.
    """
    parts: list[Comparison] = []
    read: list[Samples] = []
    wanted = rule.first
    while wanted > 0 and (samples := text.take(wanted)) is not None:
        parts.append(compare(samples, first + len(parts)))
        read.append(samples)
        found = joined(parts)
        low, high = found.interval(seed, confidence)
        wanted = rule.more(found.tokens, (high - low) / 2)
    if not parts:
        raise InputError(f"no held-out tokens to verify on in {text.name!r}; give more --eval-data")
    found, samples = joined(parts), reduce(Samples.followed_by, read)
    digest = text.digest or samples.digest
    mean, interval = float(found.kl.mean()), found.interval(seed, confidence)
    return Judged(JudgedText(text.name, digest, found.tokens, mean, interval), found, samples)
