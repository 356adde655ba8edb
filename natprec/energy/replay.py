"""A finished run's figures once more, from its stored windows and a meter's log, or from what its own counter said."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from natprec.energy.counters import CsvCounter
from natprec.energy.result import report
from natprec.energy.run import Run, with_series
from natprec.errors import InputError


def replay(path: Path, counter: str, scope: str | None) -> dict[str, Any]:
    """The report of a run with the joules that a log gives its windows; the same log gives the same bytes.

    Raises:
        InputError: the file is no run, or the counter no log that covers its windows.
    """
    if counter == "auto":
        return report(Run.load(path))
    if not counter.lower().endswith(".csv"):
        raise InputError(f"counter {counter!r}: a finished run is computed again from a meter's FILE.csv; name one")
    file = CsvCounter(Path(counter), scope or "wall")
    return report(with_series(Run.load(path), file.series(), file.description, strict=True))
