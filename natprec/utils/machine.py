"""The machine at hand: what its processor is called, and how fast it runs."""

from __future__ import annotations

import contextlib
import re
from pathlib import Path

import torch


def cpu_name(file: Path = Path("/proc/cpuinfo")) -> str:
    """What the system calls its processor; `unknown` where it does not say."""
    try:
        lines = file.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return "unknown"
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown")


def clock_mhz(device: torch.device, file: Path = Path("/proc/cpuinfo")) -> list[float]:
    """Megahertz now, of a GPU or of the fastest of the CPU's cores; empty where nobody tells."""
    if device.type == "cuda":
        with contextlib.suppress(Exception):  # NVML's library may be missing: a fact beside the figures
            return [float(torch.cuda.clock_rate(device))]
        return []
    with contextlib.suppress(OSError):
        found = re.findall(r"^cpu MHz\s*:\s*([\d.]+)", file.read_text(encoding="utf-8", errors="replace"), re.MULTILINE)
        return [max(map(float, found))] if found else []
    return []
