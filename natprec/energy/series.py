"""A counter's running total over time, and the energy between two moments of it.

Counters move in steps: NVML's about ten times a second, a wall meter's once. Energy is read at the edges of the steps,
where the total is right, and interpolated between them; a window that holds fewer than `LEAST_STEPS` edges is refused.
What cannot be right (a total that falls, a gap, a standstill, NaN) is a `CounterFault`, never a number.
"""

from __future__ import annotations

import bisect
import itertools
import math
import statistics
from collections.abc import Iterable
from dataclasses import dataclass

LEAST_STEPS = 4
"""Edges that a window must hold."""

IRREGULAR = 2.5
"""Multiple of the usual distance between samples, or edges, from which it is a gap, or a standstill."""

SLACK = 1e-6
"""Seconds by which a window may reach beyond the samples: timestamps of a file are rounded."""


class CounterFault(Exception):
    """Why a counter's readings give no energy."""


@dataclass(frozen=True)
class Energy:
    """What a counter says of a window.

    Attributes:
        steps: edges of the counter inside the window.
    """

    joules: float
    steps: int


def refuse_sample(time: float, total: float, before: tuple[float, float] | None) -> None:
    """Stop at what no running total can say.

    Args:
        before: the sample before it; None: it is the first.
    Raises:
        CounterFault: no number, a negative one, or time or total falls.
    """
    if not (math.isfinite(time) and math.isfinite(total)) or total < 0:
        raise CounterFault(f"a reading of {total:g} J at {time:.3f} s is no energy")
    if before is not None and time <= before[0]:
        raise CounterFault(f"its clock goes from {before[0]:.3f} s to {time:.3f} s")
    if before is not None and total < before[1]:
        raise CounterFault(f"its total falls from {before[1]:g} J to {total:g} J at {time:.3f} s (a reset?)")


@dataclass(frozen=True)
class Series:
    """Samples of a running total.

    Attributes:
        times: unix seconds, rising; `joules`: the total at each, never falling.
        gap: longest distance between neighbouring samples, in seconds, that is no gap.
    """

    times: tuple[float, ...]
    joules: tuple[float, ...]
    gap: float

    @classmethod
    def of(cls, samples: Iterable[tuple[float, float]], gap: float | None = None) -> Series:
        """From (unix seconds, joules).

        Args:
            gap: see the class; else a multiple of the median distance.
        Raises:
            CounterFault: time stands still or goes back, the total falls, or a value is no number or negative.
        """
        times: list[float] = []
        joules: list[float] = []
        for time, total in samples:
            refuse_sample(time, total, (times[-1], joules[-1]) if times else None)
            times.append(time)
            joules.append(total)
        if len(times) < 2:
            raise CounterFault(f"it has {len(times)} samples, and a difference needs 2")
        usual = statistics.median(later - time for time, later in itertools.pairwise(times))
        return cls(tuple(times), tuple(joules), IRREGULAR * usual if gap is None else gap)

    def edges(self, start: float, stop: float) -> Series:
        """The samples at which the total has moved, from the last one before `start` to the first one after `stop`.

        The first and last samples of the series count as edges: nothing is known beyond them.
        """
        first = max(bisect.bisect_right(self.times, start + SLACK) - 1, 0)
        while first > 0 and self.joules[first] == self.joules[first - 1]:
            first -= 1
        last = min(bisect.bisect_left(self.times, stop - SLACK), len(self.times) - 1)
        while last < len(self.times) - 1 and self.joules[last] == self.joules[last - 1]:
            last += 1
        kept = [at for at in range(first, last + 1) if at in (first, last) or self.joules[at] != self.joules[at - 1]]
        return Series(tuple(self.times[at] for at in kept), tuple(self.joules[at] for at in kept), self.gap)

    def between(self, start: float, stop: float) -> Energy:
        """The energy from `start` to `stop`, unix seconds.

        Raises:
            CounterFault: the samples do not cover the window, have a gap in it, or hardly move.
        """
        if self.times[0] > start + SLACK or self.times[-1] < stop - SLACK:
            raise CounterFault(
                f"it covers {self.times[0]:.3f} to {self.times[-1]:.3f} s, the window is {start:.3f} to {stop:.3f} s"
            )
        spacing = self._spacing(start, stop)
        edges = self.edges(start, stop)
        inside = sum(start - SLACK <= time <= stop + SLACK for time in edges.times[1:])
        if inside < LEAST_STEPS:
            raise CounterFault(
                f"it moved {inside} times in a window of {stop - start:.2f} s, and {LEAST_STEPS} are the least; "
                "raise --min-seconds"
            )
        distances = [later - time for time, later in itertools.pairwise(edges.times)]
        longest = max(distances)
        if longest > IRREGULAR * statistics.median(distances) + spacing:
            raise CounterFault(f"it stood still for {longest:.2f} s in a window of {stop - start:.2f} s")
        joules = edges.at(stop) - edges.at(start)
        if joules <= 0:
            raise CounterFault(f"it gives {joules:g} J for a window of {stop - start:.2f} s")
        return Energy(joules, inside)

    def at(self, time: float) -> float:
        """The total at a moment, on the line between the samples around it."""
        after = min(max(bisect.bisect_left(self.times, time), 1), len(self.times) - 1)
        (t0, t1), (e0, e1) = self.times[after - 1 : after + 1], self.joules[after - 1 : after + 1]
        share = min(max((time - t0) / (t1 - t0), 0.0), 1.0)
        return e0 + (e1 - e0) * share

    def _spacing(self, start: float, stop: float) -> float:
        """The longest distance between samples in a window."""
        first = max(bisect.bisect_right(self.times, start + SLACK) - 1, 0)
        last = min(bisect.bisect_left(self.times, stop - SLACK), len(self.times) - 1)
        longest, after = max((self.times[at + 1] - self.times[at], self.times[at]) for at in range(first, last))
        if longest > self.gap:
            raise CounterFault(f"it has a gap of {longest:.2f} s after {after:.3f} s, inside a window")
        return longest
