"""Progress on standard error: a bar with the time left, or lines where there is no terminal; seconds of each stage."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TaskProgressColumn, TextColumn
from rich.text import Text

from natprec.utils.human import human_seconds

Advance = Callable[[str], None]
"""Told once per piece of work done, with what was being done."""

EVERY = 30.0
"""Seconds between the lines of a stage where standard error is no terminal."""

NAME = 38
"""Columns of a stage's name, so that bars begin below each other."""


class Stages:
    """Times the stages of a run; shows a bar for each on a terminal, else a line at its start and every 30 seconds.

    Attributes:
        seconds: stage → seconds, in the order in which the stages began.
    """

    def __init__(self, quiet: bool = False) -> None:
        self.seconds: dict[str, float] = {}
        self._console = Console(stderr=True, quiet=quiet)

    @contextlib.contextmanager
    def stage(self, name: str, steps: int | None = None) -> Iterator[Advance]:
        """Time a block of code; yields what it calls after each of its `steps`."""
        start = time.perf_counter()
        try:
            with self._bar(name, steps) as advance:
                yield advance
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start

    @contextlib.contextmanager
    def _bar(self, name: str, steps: int | None) -> Iterator[Advance]:
        if not sys.stderr.isatty():
            self.note(f"{name} …")
            yield _Lines(name, steps, self.note).advance
            return
        columns = (
            TextColumn(f"{{task.description:{NAME}}}"),
            BarColumn(bar_width=20),
            TaskProgressColumn(),
            _LeftOrSpent(),
            TextColumn("[dim]{task.fields[label]}"),
        )
        with Progress(*columns, console=self._console) as bar:
            task = bar.add_task(name, total=steps, label="")
            yield lambda label: bar.update(task, advance=1, label=label)
            bar.update(task, total=steps or 1, completed=steps or 1, label="")

    def note(self, text: str) -> None:
        """One line to the person who watches; long ones are not wrapped."""
        self._console.print(text, highlight=False, markup=False, soft_wrap=True)


class _Lines:
    """A line every 30 seconds: how far a stage is, and how long it will take."""

    def __init__(self, name: str, steps: int | None, say: Callable[[str], None]) -> None:
        self._name, self._steps, self._say = name, steps, say
        self._done, self._start = 0, time.perf_counter()
        self._said = self._start

    def advance(self, label: str) -> None:
        """One more step is done."""
        self._done += 1
        now = time.perf_counter()
        if self._steps is None or now - self._said < EVERY:
            return
        self._said = now
        share = min(1.0, self._done / self._steps)
        left = (now - self._start) * (1 - share) / share
        self._say(f"{self._name} … {share:.0%}, {human_seconds(left)} left")


class _LeftOrSpent(ProgressColumn):
    """The time left while a stage runs, and the time that it took when it is done."""

    def render(self, task: Task) -> Text:
        """See rich."""
        if task.finished:
            return Text(f"took {human_seconds(task.finished_time or task.elapsed or 0.0)}")
        left = task.time_remaining
        return Text("" if left is None else f"{human_seconds(left)} left")
