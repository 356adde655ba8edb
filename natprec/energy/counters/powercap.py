"""The energy of the CPU packages, from Linux' powercap files (RAPL, Intel and AMD).

`energy_uj` counts microjoules and starts again at `max_energy_range_uj`: a total that falls has wrapped, unless that
would mean more watts than a package can take, which is a reset. Since 2020 only root may read it (CVE-2020-8694).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from natprec.energy.counters.base import LEFT_OUT, Absent, Description
from natprec.energy.series import CounterFault

ROOT = Path("/sys/class/powercap")

MOST_WATTS = 5000.0
"""More than all zones of a machine together take."""

REMEDY = "use --counter none for an ESTIMATE, or a wall meter's FILE.csv"


@dataclass
class Zone:
    """One package's file, which stays open: to open it takes longer than to read it.

    Attributes:
        range_joules: at which it starts again.
        last: its last reading; `turns`: joules of the ranges that it has been through.
    """

    file: Path
    range_joules: float
    last: float
    turns: float = 0.0
    opened: BinaryIO | None = None

    def total(self, seconds: float) -> float:
        """Joules, wrap-around counted.

        Args:
            seconds: since the last reading.
        Raises:
            CounterFault: it cannot be read, or was reset.
        """
        now = self._microjoules() / 1e6
        if now < self.last:
            gained = now + self.range_joules - self.last
            if gained < 0 or gained > MOST_WATTS * max(seconds, 1e-3):
                raise CounterFault(f"{self.file.parent.name} fell from {self.last:g} J to {now:g} J: it was reset")
            self.turns += self.range_joules
        self.last = now
        return self.turns + now

    def _microjoules(self) -> int:
        try:
            if self.opened is None:
                self.opened = self.file.open("rb", buffering=0)
            self.opened.seek(0)
            return _not_negative(int(self.opened.read(64)), self.file)
        except (OSError, ValueError) as error:
            raise CounterFault(f"{self.file} gives no number ({error})") from error


@dataclass
class Rapl:
    """All packages of a machine, or its platform zone."""

    description: Description
    zones: list[Zone]
    clock: Callable[[], float] = time.monotonic
    _at: float = field(default=0.0)

    def __post_init__(self) -> None:
        self._at = self.clock()

    def read(self) -> float:
        """See `Counter`."""
        now = self.clock()
        seconds, self._at = now - self._at, now
        return sum(zone.total(seconds) for zone in self.zones)

    def check(self) -> None:
        """See `Counter`: packages are the machine's, and no process list says whose."""


def open_rapl(
    scope: str | None = None, root: Path = ROOT, clock: Callable[[], float] = time.monotonic
) -> Rapl | Absent:
    """The packages' counter; with scope `node` the platform's (psys), where there is one."""
    wanted = "psys" if scope == "node" else "package"
    folders = sorted(root.glob("intel-rapl:*")) if root.is_dir() else []
    named = {folder: _read(folder / "name") for folder in folders if ":" not in folder.name.partition(":")[2]}
    chosen = [folder for folder, name in named.items() if name.startswith(wanted)]
    if not chosen:
        what = "no platform zone (psys)" if wanted == "psys" else "no package zone"
        where = "Linux shows no powercap folder" if not root.is_dir() else f"powercap has {what}"
        return Absent("rapl", f"{where} (a virtual machine has none)", REMEDY)
    zones = []
    for folder in chosen:
        file, turn = folder / "energy_uj", folder / "max_energy_range_uj"
        try:
            zones.append(Zone(file, microjoules(turn) / 1e6, microjoules(file) / 1e6))
        except CounterFault as error:
            remedy = f"let an administrator run chmod a+r {file}, or {REMEDY}"
            return Absent("rapl", f"{folder.name} cannot be read: {error}", remedy)
    scope = "node" if wanted == "psys" else "package"
    notes = ("other processes of this machine are counted too",)
    name = f"{len(zones)} zones: {', '.join(named[folder] for folder in chosen)}"
    return Rapl(Description("rapl", name, scope, 1e-6, LEFT_OUT[scope], notes), zones, clock)


def microjoules(file: Path) -> int:
    """The number in a file.

    Raises:
        CounterFault: no permission, not there, or no number.
    """
    try:
        value = int(file.read_text())
    except PermissionError as error:
        raise CounterFault(f"no permission for {file}") from error
    except (OSError, ValueError) as error:
        raise CounterFault(f"{file} gives no number ({error})") from error
    return _not_negative(value, file)


def _not_negative(value: int, file: Path) -> int:
    if value < 0:
        raise CounterFault(f"{file} says {value}")
    return value


def _read(file: Path) -> str:
    try:
        return file.read_text().strip()
    except OSError:
        return ""
