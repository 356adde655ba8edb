"""Texts judge one after the other, each in portions, until its interval is narrow enough: see `verdict`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from natprec.data.windows import data_digest
from natprec.errors import InputError
from natprec.evaluation.verdict import HeldOutText, JudgedText, Portions
from natprec.evaluation.verification import Comparison, joined

Compare = Callable[[Tensor, int], Comparison]
"""Compares both models on (sequences, length) ids; the number of the portion names what a killed run leaves."""


@dataclass
class GivenText:
    """Token ids that are there: `windows`, (sequences, length)."""

    name: str
    windows: Tensor
    digest: str | None = None
    _taken: int = field(default=0, init=False)

    def take(self, tokens: int) -> Tensor | None:
        """The next windows: see `HeldOutText`."""
        wanted = max(1, -(-tokens // self.windows.shape[1]))
        found = self.windows[self._taken : self._taken + wanted]
        self._taken += len(found)
        return found if len(found) else None


@dataclass(frozen=True)
class Judged:
    """What a text said: `ids` of all its portions."""

    text: JudgedText
    comparison: Comparison
    ids: Tensor


def judge(text: HeldOutText, rule: Portions, compare: Compare, seed: int, confidence: float, first: int) -> Judged:
    """Compare on portions of a text until its interval is narrow enough, or the rule or the text ends.

    Args:
        first: number of the first portion.
    Raises:
        InputError: the text is empty.
    """
    parts: list[Comparison] = []
    read: list[Tensor] = []
    wanted = rule.first
    while wanted > 0 and (ids := text.take(wanted)) is not None:
        parts.append(compare(ids, first + len(parts)))
        read.append(ids)
        found = joined(parts)
        low, high = found.interval(seed, confidence)
        wanted = rule.more(found.tokens, (high - low) / 2)
    if not parts:
        raise InputError(f"no held-out tokens to verify on in {text.name!r}; give more --eval-data")
    found, ids = joined(parts), torch.cat(read)
    digest = text.digest or data_digest(ids)
    mean, interval = float(found.kl.mean()), found.interval(seed, confidence)
    return Judged(JudgedText(text.name, digest, found.tokens, mean, interval), found, ids)
