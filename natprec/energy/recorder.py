"""A live counter's readings during a run: a thread reads it every 30 ms, beside the work and out of its way.

Times are those of a steady clock, set to the wall's once: a jump of the wall clock moves no window. How far the wall
has gone from it is kept for each window, since a meter with its own clock would be off by as much.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from natprec.energy.counters.base import Counter
from natprec.energy.series import CounterFault, Series, refuse_sample

EVERY = 0.03
"""Seconds between readings: NVML renews its total ten to fifty times a second."""

LIVE_GAP = 1.0
"""Seconds without a reading that still are no gap: a busy machine lets the thread wait."""


@dataclass
class Clock:
    """Unix seconds that never jump.

    Attributes:
        wall, steady, sleep: the machine's own; tests bring others.
    """

    wall: Callable[[], float] = time.time
    steady: Callable[[], float] = time.perf_counter
    sleep: Callable[[float], None] = time.sleep
    _offset: float = field(init=False)

    def __post_init__(self) -> None:
        self._offset = self.wall() - self.steady()

    def now(self) -> float:
        """Unix seconds."""
        return self.steady() + self._offset

    def drift(self) -> float:
        """Seconds that the wall clock is ahead of `now`."""
        return self.wall() - self.now()


class Recorder:
    """The samples of one counter; after a fault there are no more."""

    def __init__(self, counter: Counter, clock: Clock) -> None:
        self.counter, self.clock = counter, clock
        self.fault: str | None = None
        self.edges = 0
        self._samples: list[tuple[float, float]] = []
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def poll(self) -> None:
        """Read the counter once."""
        if self.fault is not None:
            return
        try:
            joules, now = self.counter.read(), self.clock.now()
            before = self._samples[-1] if self._samples else None
            refuse_sample(now, joules, before)
            self.edges += before is not None and joules != before[1]
            self._samples.append((now, joules))
        except CounterFault as error:
            self.fault = str(error)

    def series(self) -> Series:
        """All that was read so far.

        Raises:
            CounterFault: the counter failed, at whatever time.
        """
        if self.fault is not None:
            raise CounterFault(self.fault)
        return Series.of(list(self._samples), LIVE_GAP)

    def start(self) -> Recorder:
        """Let a thread read it."""
        self._thread = threading.Thread(target=self._run, name="natprec-energy", daemon=True)
        self._thread.start()
        return self

    def stop(self) -> None:
        """End the thread."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()

    def _run(self) -> None:
        while not self._stop.wait(EVERY):
            self.poll()
