"""Threads that wait spin for a moment, then sleep: beside other processes a spinning thread takes the core from the one
it waits for, and a thread that sleeps at once is woken late.

SmolLM2-135M, `natprec quantize` on 2 quiet cores, one run each: 131 s where waiting threads sleep at once, 102 s with
these values; an older natprec, with the library's own, took 103 s and a tenth more CPU time.
"""

from __future__ import annotations

import os
from collections.abc import MutableMapping

BRIEF = {"GOMP_SPINCOUNT": "5000", "KMP_BLOCKTIME": "1"}
"""For the OpenMP libraries of GNU (turns of a loop) and of Intel (milliseconds); read when torch loads them."""

DECIDED = (*BRIEF, "OMP_WAIT_POLICY")
"""What a user may have set instead."""

LATENCY = ("generate", "serve")
"""Commands with hundreds of small products for each token, where waking a thread shows."""


def wait_passively(command: str | None, environment: MutableMapping[str, str] = os.environ) -> None:
    """Tell OpenMP, before torch is imported, to let waiting threads sleep; what the user set stays.

    A command that writes token by token does so only where the machine has other work already.
    """
    if command in LATENCY and not _busy():
        return
    if not environment.keys() & set(DECIDED):
        environment.update(BRIEF)


def _busy() -> bool:
    """Whether others took more than half of the cores over the last minute."""
    return os.getloadavg()[0] > 0.5 * (os.cpu_count() or 1)
