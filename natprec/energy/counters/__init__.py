"""The counters, each one file behind one interface, and which of them a run gets."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from natprec.energy.counters.base import SCOPES, Absent, Counter, Description
from natprec.energy.counters.csv_file import CsvCounter
from natprec.energy.counters.nvml import open_nvml
from natprec.energy.counters.powercap import open_rapl
from natprec.energy.counters.zeus import open_zeus
from natprec.errors import InputError, unknown

NAMES = ("auto", "nvml", "rapl", "zeus", "none")
"""What `--counter` may be besides a meter's FILE.csv."""

OWN_SCOPE = {"nvml": ("gpu",), "zeus": ("gpu",), "rapl": ("package", "node")}

__all__ = ["NAMES", "SCOPES", "Absent", "Counter", "CsvCounter", "Description", "Found", "find_counter"]


@dataclass(frozen=True)
class Found:
    """The counter of a run, live or a file; neither: why.

    Attributes:
        absent: the counters that were looked for in vain.
    """

    live: Counter | None = None
    file: CsvCounter | None = None
    absent: tuple[Absent, ...] = ()


def find_counter(
    name: str, *, device: str = "cpu", scope: str | None = None, shared: bool = False, serves: bool = False
) -> Found:
    """Open what `--counter` names. It comes before the model: NVML then sees whose the GPU is.

    Args:
        device: where the run computes; a GPU's energy is not counted for a run on the CPU, nor the CPU's for one on a
            GPU.
        serves: the work is done by a server on this machine, on whichever device.
    Raises:
        InputError: it was asked for and is not there, an unknown name, or a scope that it does not have.
    """
    if scope is not None and scope not in SCOPES:
        raise unknown("scope", scope, SCOPES)
    if name.lower().endswith(".csv"):
        file = CsvCounter(Path(name), scope or "wall")
        file.series()
        return Found(file=file)
    if name not in NAMES:
        raise unknown("counter", name, (*NAMES, "FILE.csv"))
    if name == "none":
        return Found()
    kinds = _candidates(device, scope, serves) if name == "auto" else [name]
    if name != "auto" and scope is not None and scope not in OWN_SCOPE[name]:
        raise InputError(f"counter {name!r} counts the {' or the '.join(OWN_SCOPE[name])}, not scope {scope!r}")
    absent: list[Absent] = []
    for kind in kinds:
        opened = {
            "nvml": lambda: open_nvml(device, shared, serves),
            "rapl": lambda: open_rapl(scope),
            "zeus": lambda: open_zeus(device),
        }[kind]()
        if not isinstance(opened, Absent):
            return Found(live=_noted(opened, device, serves), absent=tuple(absent))
        absent.append(opened)
    if name != "auto":
        raise InputError(f"counter {name!r} is not there: {absent[0].reason}; {absent[0].remedy}")
    return Found(absent=tuple(absent))


def _noted(counter: Counter, device: str, serves: bool) -> Counter:
    """The counter, which says so if it was asked for and does not see the device that does the work."""
    counts = "CPU" if "GPU" in counter.description.excluded else "GPU"
    works = "CPU" if device.startswith("cpu") else "GPU"
    if counter.description.scope in ("gpu", "package") and counts != works and not serves:
        note = f"the work is done by the {works}, and this counter sees the {counts} alone"
        counter.description = replace(counter.description, notes=(note, *counter.description.notes))
    return counter


def _candidates(device: str, scope: str | None, serves: bool) -> list[str]:
    """Kinds that `auto` tries, the preferred first."""
    on_gpu, on_cpu = ["nvml", "zeus"], ["rapl"]
    kinds = on_gpu + on_cpu if serves else on_cpu if device.startswith("cpu") else on_gpu
    return [kind for kind in kinds if scope is None or scope in OWN_SCOPE[kind]]
