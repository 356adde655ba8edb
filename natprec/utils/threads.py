"""Threads that wait do not spin: beside other processes a spinning thread takes the core from the one it waits for."""

from __future__ import annotations

import os
from collections.abc import MutableMapping

PASSIVE = {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "0", "KMP_BLOCKTIME": "0"}
"""For the OpenMP libraries of GNU and of Intel; read when torch loads them."""

LATENCY = ("generate", "serve")
"""Commands with hundreds of small products for each token, where waking a thread shows."""


def wait_passively(command: str | None, environment: MutableMapping[str, str] = os.environ) -> None:
    """Tell OpenMP, before torch is imported, to let waiting threads sleep; what the user set stays.

    A command that writes token by token does so only where the machine has other work already.
    """
    if command in LATENCY and not _busy():
        return
    if not PASSIVE.keys() & environment.keys():
        environment.update(PASSIVE)


def _busy() -> bool:
    """Whether others took more than half of the cores over the last minute."""
    return os.getloadavg()[0] > 0.5 * (os.cpu_count() or 1)
