"""Windows of work: whole cycles, one after the other without a pause, long enough for the counter to move.

The work begins before the first window and goes on after the last one until the counter has moved: the steps of the
counter across their ends are of work, too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Annotated, Protocol

from natprec.energy.recorder import Clock, Recorder
from natprec.energy.series import LEAST_STEPS
from natprec.utils.schema import Above0, Count, Within

LEAD = 0.3
"""Seconds of work before the first and after the last window, at least."""

LONGEST = 10
"""A window is lengthened to so many times what was asked for, and not further."""

JUMP = 0.05
"""Seconds by which the wall clock may leave the steady one during a window."""

Unix = Annotated[float, Within(0)]


@dataclass(frozen=True)
class Window:
    """A stretch of work.

    Attributes:
        start, stop: unix seconds of the run's steady clock.
        tokens: done in it, of all sequences together.
        drift: seconds that the wall clock moved against the steady one meanwhile.
        joules: what the counter said of it; None: nothing, and if there was a counter `fault` says why.
    """

    start: Unix
    stop: Unix
    tokens: Count
    drift: float
    joules: Above0 | None = None
    fault: str | None = None

    @property
    def seconds(self) -> float:
        """How long it took."""
        return self.stop - self.start


@dataclass(frozen=True)
class Pace:
    """How long windows are.

    Attributes:
        count: of windows; seconds: of each, at least; lead: of work before and after them, at least.
    """

    count: int
    seconds: float
    lead: float = LEAD


class Work(Protocol):
    """What is repeated in a window."""

    def cycle(self) -> Iterator[int]:
        """Once through; yields the tokens done by each step."""


def cut_windows(
    work: Work, clock: Clock, recorder: Recorder | None, pace: Pace, advance: Callable[[], None]
) -> list[Window]:
    """Run the work and cut it into windows.

    Args:
        recorder: a live counter, for whose edges a window waits.
        advance: told after each window.
    """
    _lead(work, clock, recorder, pace)
    windows: list[Window] = []
    mark, tokens = Mark.now(clock, recorder), 0
    while len(windows) < pace.count:
        tokens += sum(work.cycle())
        if mark.ended(clock, recorder, pace.seconds):
            window, mark = mark.cut(clock, recorder, tokens)
            windows.append(window)
            tokens = 0
            advance()
    _lead(work, clock, recorder, pace)
    return windows


def idle_window(clock: Clock, recorder: Recorder | None, pace: Pace) -> Window:
    """Nothing but waiting, the model in memory."""

    class Waiting:
        def cycle(self) -> Iterator[int]:
            clock.sleep(min(pace.seconds, 0.1))
            yield 0

    return cut_windows(Waiting(), clock, recorder, replace(pace, count=1), lambda: None)[0]


@dataclass(frozen=True)
class Mark:
    """Where a window begins.

    Attributes:
        edges: of the counter until then; drift: of the wall clock.
    """

    start: float
    edges: int
    drift: float

    @classmethod
    def now(cls, clock: Clock, recorder: Recorder | None) -> Mark:
        """This moment."""
        return cls(clock.now(), 0 if recorder is None else recorder.edges, clock.drift())

    def ended(self, clock: Clock, recorder: Recorder | None, seconds: float, steps: int = LEAST_STEPS) -> bool:
        """Whether so many seconds have passed and the counter has moved so often, or never will."""
        passed = clock.now() - self.start
        moved = recorder is None or recorder.edges - self.edges >= steps or recorder.fault is not None
        return passed >= seconds and (moved or passed >= LONGEST * seconds)

    def cut(self, clock: Clock, recorder: Recorder | None, tokens: int) -> tuple[Window, Mark]:
        """The window that ends now, and the beginning of the next."""
        after = Mark.now(clock, recorder)
        return Window(self.start, after.start, tokens, after.drift - self.drift), after


def _lead(work: Work, clock: Clock, recorder: Recorder | None, pace: Pace) -> None:
    """Work that no window counts, until the counter has moved; steps of a cycle suffice."""
    mark = Mark.now(clock, recorder)
    while True:
        for _ in work.cycle():
            if mark.ended(clock, recorder, pace.lead, steps=1):
                return
