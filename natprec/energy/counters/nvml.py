"""The board energy of one NVIDIA GPU, through NVML (`nvmlDeviceGetTotalEnergyConsumption`, Volta and later).

NVML counts a whole board: an instance of MIG has no counter of its own, and a second process' work would be counted
as ours, so both are refused. The library is nvidia-ml-py (`pynvml`), the extra `energy`.
"""

from __future__ import annotations

import importlib
import os
from typing import Any

from natprec.energy.counters.base import LEFT_OUT, Absent, Description
from natprec.energy.series import CounterFault
from natprec.errors import InputError

REMEDY = "use --counter none for an ESTIMATE, or a wall meter's FILE.csv"


class Nvml:
    """A GPU's counter."""

    def __init__(self, library: Any, handle: Any, index: int, shared: bool, serves: bool) -> None:
        """Refuse a GPU whose energy would not be this run's.

        Args:
            shared: whether other processes may use it too.
            serves: whether one other process, the server, is expected there.
        Raises:
            InputError: another process uses it.
        """
        self._library, self._handle, self._shared = library, handle, shared
        self._allowed = 1 if serves else 0
        name = _text(library.nvmlDeviceGetName(handle))
        notes = ("other processes may have used the GPU (--shared)",) if shared else ()
        self.description = Description("nvml", f"GPU {index}, {name}", "gpu", 0.001, LEFT_OUT["gpu"], notes)
        others = self._others()
        if not shared and len(others) > self._allowed:
            raise InputError(
                f"GPU {index} is used by {len(others)} other processes ({', '.join(map(str, others))}), whose energy "
                "would be counted too; end them, or add --shared"
            )
        self._before = len(others)

    def read(self) -> float:
        """See `Counter`."""
        try:
            millijoules = self._library.nvmlDeviceGetTotalEnergyConsumption(self._handle)
        except self._library.NVMLError as error:
            raise CounterFault(f"NVML cannot be read any more ({error})") from error
        if millijoules is None:
            raise CounterFault("NVML gave no value")
        return float(millijoules) / 1000

    def check(self) -> None:
        """See `Counter`. Inside a container our own process has another number, so one more is ours."""
        others = self._others()
        if not self._shared and len(others) > self._before + 1:
            raise CounterFault(f"{len(others)} other processes use the GPU by now")

    def _others(self) -> list[int]:
        found = {int(process.pid) for process in self._library.nvmlDeviceGetComputeRunningProcesses(self._handle)}
        return sorted(found - {os.getpid()})


def open_nvml(device: str, shared: bool = False, serves: bool = False) -> Nvml | Absent:
    """The counter of the GPU that a run uses.

    Args:
        device: as torch spells it; a number in it names the GPU among the visible ones.
    Raises:
        InputError: two GPUs and none named, MIG, or another process on it.
    """
    try:
        library: Any = importlib.import_module("pynvml")
    except ImportError:
        return Absent("nvml", "nvidia-ml-py (pynvml) is not installed", f"pip install 'natprec[energy]', or {REMEDY}")
    try:
        library.nvmlInit()
        count = library.nvmlDeviceGetCount()
    except library.NVMLError as error:
        return Absent("nvml", f"NVML finds no NVIDIA driver ({error})", REMEDY)
    visible = _visible(count)
    number = device.partition(":")[2]
    if not number and len(visible) > 1:
        raise InputError(f"{len(visible)} GPUs are visible and none is named; add --device cuda:0, or another number")
    index = int(number or 0)
    if index >= len(visible):
        return Absent("nvml", f"there is no GPU {index}; {len(visible)} are visible to NVML", REMEDY)
    chosen = visible[index]
    if chosen.startswith("MIG"):
        raise _mig(index)
    try:
        by_index = chosen.isdigit()
        handle = (library.nvmlDeviceGetHandleByIndex if by_index else library.nvmlDeviceGetHandleByUUID)(
            int(chosen) if by_index else chosen
        )
        if _has_mig(library, handle):
            raise _mig(index)
        library.nvmlDeviceGetTotalEnergyConsumption(handle)
        return Nvml(library, handle, index, shared, serves)
    except library.NVMLError as error:
        return Absent("nvml", f"GPU {index} gives no total of energy ({error}; Volta and later do)", REMEDY)


def gpu_facts(device: str) -> dict[str, Any]:
    """Name, UUID, driver and power limit of a GPU; empty where NVML tells nothing."""
    try:
        library: Any = importlib.import_module("pynvml")
        library.nvmlInit()
        visible = _visible(library.nvmlDeviceGetCount())
        chosen = visible[int(device.partition(":")[2] or 0)]
        handle = library.nvmlDeviceGetHandleByIndex(int(chosen))
        return {
            "gpu": _text(library.nvmlDeviceGetName(handle)),
            "uuid": _text(library.nvmlDeviceGetUUID(handle)),
            "driver": _text(library.nvmlSystemGetDriverVersion()),
            "power_limit_watts": library.nvmlDeviceGetPowerManagementLimit(handle) / 1000,
        }
    except Exception:  # facts beside the figures: a run needs none of them
        return {}


def _visible(count: int) -> list[str]:
    """Indices or UUIDs of the GPUs that CUDA shows to this process, in its order."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is None:
        return [str(index) for index in range(count)]
    return [name.strip() for name in named.split(",") if name.strip() not in ("", "-1")]


def _has_mig(library: Any, handle: Any) -> bool:
    try:
        return bool(library.nvmlDeviceGetMigMode(handle)[0])
    except library.NVMLError:  # a GPU that cannot be divided says so by an error
        return False


def _mig(index: int) -> InputError:
    return InputError(
        f"GPU {index} is divided by MIG, and NVML counts the energy of the whole board only; "
        "turn MIG off, or use --counter none"
    )


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)
