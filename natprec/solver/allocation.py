"""Sharing a tolerance or a size among decisions: one sort over the measured steps.

Each decision's useful formats form the lower convex hull of its (bytes, KL) points; a step along it
saves bytes and costs KL. All steps of all decisions, sorted by KL per byte saved, form one staircase
from the widest plan to the cheapest. A tolerance is a look-up in its running sum of KL, a size a
look-up in its running sum of bytes. Instead of bytes the staircase can save any other cost, such as
the microseconds of a token: `natprec.solver.objective` says what a decision adds to it.
For KL ~ n · 4^-b the staircase stops where every decision spends the same KL per parameter: that is
the closed form eps_v = E · n_v / Σ n_v of T5.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Decision:
    """One choice of the solver: a format that several sites share.

    Attributes:
        elements: number of weights.
        kl: (formats,) nats per token, summed over the decision's sites.
        worst: (formats,) the largest KL of one of its sites.
        stored: (formats,) bytes, or the other cost that is saved instead.
    """

    name: str
    elements: int
    kl: np.ndarray
    worst: np.ndarray
    stored: np.ndarray


def natural_precision(stored: np.ndarray, kl: np.ndarray, eps: float) -> int | None:
    """b*(eps): the cheapest format from which every wider one also keeps KL <= eps (T1).

    Args:
        stored: (formats,) bytes; orders the formats.
        kl: (formats,) nats per token.
    Returns:
        The format's index, or None when not even the widest keeps the tolerance.
    """
    best = None
    for index in sorted(range(len(kl)), key=lambda i: (stored[i], -kl[i]), reverse=True):
        if kl[index] > eps:
            break
        best = index
    return best


def lower_hull(stored: np.ndarray, kl: np.ndarray) -> list[int]:
    """Indices of the lower convex hull of the (bytes, KL) points, widest first."""
    hull: list[int] = []
    lowest = np.inf
    for index in sorted(range(len(kl)), key=lambda i: (stored[i], kl[i])):
        if kl[index] >= lowest:
            continue  # a cheaper format is at least as good
        lowest = kl[index]
        while len(hull) > 1 and _slope(stored, kl, hull[-1], index) >= _slope(stored, kl, hull[-2], hull[-1]):
            hull.pop()
        hull.append(index)
    # Walking to more bytes, the KL saved per byte must fall; what breaks that was popped above.
    return hull[::-1]


def _slope(stored: np.ndarray, kl: np.ndarray, cheap: int, wide: int) -> float:
    """KL saved per byte added between two formats."""
    return float((kl[cheap] - kl[wide]) / (stored[wide] - stored[cheap]))


@dataclass(frozen=True)
class Staircase:
    """All steps of all decisions in the order in which they are taken.

    Attributes:
        start: format index of each decision in the widest plan.
        decision, format: (steps,) what each step changes.
        kl, stored: (steps + 1,) of the whole plan before the first step and after each.
    """

    start: tuple[int, ...]
    decision: np.ndarray
    format: np.ndarray
    kl: np.ndarray
    stored: np.ndarray

    def choices(self, steps: int) -> list[int]:
        """Format index of each decision after so many steps."""
        chosen = list(self.start)
        for decision, fmt in zip(self.decision[:steps], self.format[:steps], strict=True):
            chosen[decision] = int(fmt)
        return chosen


def staircase(decisions: Sequence[Decision]) -> Staircase:
    """Sort the steps of all decisions: least KL per byte saved first."""
    steps: list[tuple[float, int, int, float, float]] = []
    start, kl, stored = [], 0.0, 0.0
    for number, decision in enumerate(decisions):
        hull = lower_hull(decision.stored, decision.kl)
        start.append(hull[0])
        kl += float(decision.kl[hull[0]])
        stored += float(decision.stored[hull[0]])
        for wide, cheap in itertools.pairwise(hull):
            cost = float(decision.kl[cheap] - decision.kl[wide])
            saved = float(decision.stored[wide] - decision.stored[cheap])
            steps.append((cost / saved, number, cheap, cost, saved))
    steps.sort(key=lambda step: step[:2])
    return Staircase(
        start=tuple(start),
        decision=np.array([step[1] for step in steps], dtype=np.int64),
        format=np.array([step[2] for step in steps], dtype=np.int64),
        kl=kl + np.concatenate([[0.0], np.cumsum([step[3] for step in steps])]),
        stored=stored - np.concatenate([[0.0], np.cumsum([step[4] for step in steps])]),
    )


def within_kl(decisions: Sequence[Decision], stairs: Staircase, budget: float) -> list[int]:
    """The cheapest plan on the staircase with KL <= budget; the rest of the budget is then spent on
    the later steps that still fit, in the same order.
    """
    steps = int(np.searchsorted(stairs.kl, budget, side="right")) - 1
    chosen = stairs.choices(max(steps, 0))
    left = budget - float(stairs.kl[max(steps, 0)])
    for decision, fmt in zip(stairs.decision[steps:], stairs.format[steps:], strict=True):
        cost = float(decisions[decision].kl[fmt] - decisions[decision].kl[chosen[decision]])
        if cost > left:  # the decision's later steps cost more still
            continue
        chosen[decision] = int(fmt)
        left -= cost
    return chosen


def within_bytes(decisions: Sequence[Decision], stairs: Staircase, budget: float) -> list[int]:
    """The plan on the staircase with the least KL whose bytes are <= budget; what is left buys back
    the dearest of the steps taken that still fit.
    """
    steps = int(np.searchsorted(-stairs.stored, -budget, side="left"))
    chosen = stairs.choices(steps)
    left = budget - float(stairs.stored[steps])
    hulls = [lower_hull(decision.stored, decision.kl) for decision in decisions]
    for decision in reversed(stairs.decision[:steps]):
        hull = hulls[decision]
        place = hull.index(chosen[decision])
        if place == 0:
            continue
        cost = float(decisions[decision].stored[hull[place - 1]] - decisions[decision].stored[chosen[decision]])
        if cost <= left:
            chosen[decision] = hull[place - 1]
            left -= cost
    return chosen
