"""GPUs that zeus knows and NVML does not (AMD's, through amdsmi), where the user has it installed.

zeus (`zeus`, formerly `zeus-ml`) answers 0 J where there is no GPU; its list of GPUs, which then cannot be had, is
asked first. It prints while it is imported: that goes to standard error.
"""

from __future__ import annotations

import contextlib
import importlib
import sys
from typing import Any

from natprec.energy.counters.base import LEFT_OUT, Absent, Description
from natprec.energy.series import CounterFault
from natprec.errors import InputError

REMEDY = "use --counter none for an ESTIMATE, or a wall meter's FILE.csv"


class Zeus:
    """One GPU as zeus reads it."""

    def __init__(self, gpus: Any, index: int) -> None:
        # older releases spell it getTotalEnergyConsumption
        new = hasattr(gpus, "get_total_energy_consumption")
        self._total = gpus.get_total_energy_consumption if new else gpus.getTotalEnergyConsumption
        self._index = index
        self.description = Description(
            "zeus", f"GPU {index}", "gpu", 0.001, LEFT_OUT["gpu"], ("zeus does not say who else uses the GPU",)
        )

    def read(self) -> float:
        """See `Counter`."""
        try:
            millijoules = self._total(self._index)
        except Exception as error:  # of whatever library zeus asks
            raise CounterFault(f"zeus cannot be read any more ({error})") from error
        if millijoules is None:
            raise CounterFault("zeus gave no value")
        return float(millijoules) / 1000

    def check(self) -> None:
        """See `Counter`: zeus has no list of processes."""


def open_zeus(device: str) -> Zeus | Absent:
    """The counter of a GPU.

    Raises:
        InputError: several GPUs and none named.
    """
    try:
        with contextlib.redirect_stdout(sys.stderr):
            module: Any = importlib.import_module("zeus.device")
            gpus = module.get_gpus()
            count = len(gpus)
    except ImportError:
        return Absent("zeus", "zeus is not installed", f"pip install zeus, or {REMEDY}")
    except Exception as error:  # its own errors, or those of a driver's library
        return Absent("zeus", f"zeus finds no GPU ({error})", REMEDY)
    if not count:
        return Absent("zeus", "zeus finds no GPU", REMEDY)
    number = device.partition(":")[2]
    if not number and count > 1:
        raise InputError(f"zeus sees {count} GPUs and none is named; add --device cuda:0, or another number")
    if int(number or 0) >= count:
        return Absent("zeus", f"there is no GPU {number}; zeus sees {count}", REMEDY)
    made = Zeus(gpus, int(number or 0))
    try:
        made.read()
    except CounterFault as error:
        return Absent("zeus", str(error), REMEDY)
    return made
