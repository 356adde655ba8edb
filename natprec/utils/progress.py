"""Progress on standard error: a bar with the time left, and the seconds of each stage."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

Advance = Callable[[str], None]
"""Told once per piece of work done, with what was being done."""


class Stages:
    """Times the stages of a run; shows a bar for each when standard error is a terminal.

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
            yield lambda label: None
            return
        columns = (
            TextColumn("{task.description}"),
            BarColumn(bar_width=30),
            TaskProgressColumn(),
            TimeRemainingColumn(),
            TextColumn("left"),
            TextColumn("[dim]{task.fields[label]}"),
        )
        with Progress(*columns, console=self._console) as bar:
            task = bar.add_task(name, total=steps, label="")
            yield lambda label: bar.update(task, advance=1, label=label)
            bar.update(task, total=steps or 1, completed=steps or 1, label="")

    def note(self, text: str) -> None:
        """One line to the person who watches; long ones are not wrapped."""
        self._console.print(text, highlight=False, markup=False, soft_wrap=True)
