"""A wall meter's log: `unix_seconds,joules` (a running total) or `unix_seconds,watts`, with the meter's own clock.

Watts are summed by trapezoids. The log may grow while the run goes on; what counts is what it says at the end.
"""

from __future__ import annotations

import csv
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from natprec.energy.counters.base import LEFT_OUT, Description
from natprec.energy.series import IRREGULAR, CounterFault, Series
from natprec.errors import InputError
from natprec.utils.records import public_name

HEADERS = (("unix_seconds", "joules"), ("unix_seconds", "watts"))

STALE = 60.0
"""Seconds after its last row from which a log is taken not to be running."""


@dataclass(frozen=True)
class CsvCounter:
    """A log file, read anew each time.

    Attributes:
        path: the file.
        scope: what the meter sees, as the user says; a wall meter's by default.
    """

    path: Path
    scope: str

    @property
    def description(self) -> Description:
        """For energy.json: the same, whoever reads the file and when."""
        return Description("csv", public_name(self.path), self.scope, None, LEFT_OUT[self.scope])

    def series(self) -> Series:
        """All that it says.

        Raises:
            InputError: it cannot be read, has another header, no number, or values that no meter gives.
        """
        where = f"counter {str(self.path)!r}"
        try:
            with self.path.open(encoding="utf-8", newline="") as file:
                return Series.of(_totals(csv.reader(file), where))
        except FileNotFoundError as error:
            raise InputError(f"{where} does not exist; give nvml, rapl, none, or a meter's FILE.csv") from error
        except (OSError, UnicodeDecodeError, csv.Error) as error:
            raise InputError(
                f"{where} cannot be read ({error}); give a CSV with the header unix_seconds,joules"
            ) from error
        except CounterFault as error:
            raise InputError(f"{where}: {error}; record it again") from error

    def spacing(self, now: float) -> float:
        """Usual seconds between its rows.

        Args:
            now: unix seconds.
        Raises:
            InputError: as `series`, or the log has ended.
        """
        found = self.series()
        if found.times[-1] < now - STALE:
            raise InputError(
                f"counter {str(self.path)!r} has its last row {now - found.times[-1]:.0f} s ago and will not cover a "
                "window; start the meter first, or compute a finished run again with --replay"
            )
        return found.gap / IRREGULAR

    def wait_for(self, moment: float, most: float = 10.0) -> Series:
        """The log once it reaches a moment, or as far as it has come after `most` seconds."""
        waited = 0.0
        while (found := self.series()).times[-1] < moment and waited < most:
            time.sleep(0.25)
            waited += 0.25
        return found


def _totals(rows: Iterator[list[str]], where: str) -> Iterator[tuple[float, float]]:
    """(unix seconds, joules) of each row, a last one that is still being written left out."""
    header = tuple(name.strip() for name in next(rows, []))
    if header not in HEADERS:
        raise InputError(
            f"{where} begins with {','.join(header)[:80]!r}; its header must be unix_seconds,joules (a running total) "
            "or unix_seconds,watts"
        )
    watts = header[1] == "watts"
    total, before = 0.0, None
    for number, row in enumerate(rows, 2):
        if not row:
            continue
        try:
            seconds, value = float(row[0]), float(row[1])
        except (ValueError, IndexError) as error:
            raise InputError(f"{where} has no two numbers in line {number}: {','.join(row)[:60]!r}; mend it") from error
        if not value >= 0:
            raise InputError(f"{where} says {value:g} {header[1]} in line {number}; a meter gives 0 or more; mend it")
        if not watts:
            yield seconds, value
            continue
        if before is not None:
            total += (seconds - before[0]) * (value + before[1]) / 2
        before = seconds, value
        if total < 0:
            raise CounterFault(f"its clock goes back in line {number}")
        yield seconds, total
