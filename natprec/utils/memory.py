"""How much memory there is, and how much was used."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import resource
from collections.abc import Iterator
from pathlib import Path
from typing import Any

CGROUP = Path("/sys/fs/cgroup")

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""Of glibc's mallopt."""


def available_bytes() -> int:
    """Bytes of main memory that this process may still take: what is free, within the limits of its container.

    Processes that a launcher started beside it on this machine get as much each.
    """
    lines = Path("/proc/meminfo").read_text().splitlines()
    free = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    try:
        limit = (CGROUP / "memory.max").read_text().strip()
        if limit != "max":
            free = min(free, int(limit) - int((CGROUP / "memory.current").read_text()))
    except (OSError, ValueError):
        pass  # no such limit
    beside = os.environ.get("LOCAL_WORLD_SIZE", "1")
    return max(free, 0) // (int(beside) if beside.isdigit() and int(beside) else 1)


def resident_bytes() -> int:
    """What is resident of this process now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


@contextlib.contextmanager
def growing_by(limit: int) -> Iterator[None]:
    """Within the block Python raises MemoryError rather than take `limit` more bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    most = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize() + limit
    known = [each for each in (soft, hard, most) if each != resource.RLIM_INFINITY]
    resource.setrlimit(resource.RLIMIT_AS, (min(known), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def give_back() -> None:
    """Hand freed memory back to the system, where the C library keeps it.

    glibc does so with blocks of some megabytes, such as a layer's weights, and keeps the more the longer a run is: a
    model of 24 blocks read one by one held 500 MB of them.
    """
    trim = _trim()
    if trim is not None:
        trim(0)


def keep_freed() -> None:
    """From now on the C library keeps freed blocks below 256 MB, up to 512 MB of them, to use them again.

    By default glibc hands back blocks beyond some megabytes at once, and the system clears each page when it is taken
    again: 6 million pages and 9 of 97 CPU seconds of measuring and rounding SmolLM2-135M (LOG.md, 2026-11-28).
    """
    _mallopt(M_MMAP_THRESHOLD, 1 << 28)
    _mallopt(M_TRIM_THRESHOLD, 1 << 29)


def release_freed() -> None:
    """From now on the C library hands blocks beyond 4 MB back as soon as they are freed.

    By default it learns to keep those up to 32 MB, in pieces that fit the next segment's blocks the less the longer a
    run is: a model of 6 blocks of 124 million weights took 5.17 GB, growing from one to the next, and now 4.79 in the
    same time (LOG.md, 2026-11-28).
    """
    _mallopt(M_MMAP_THRESHOLD, 1 << 22)


def _mallopt(option: int, value: int) -> None:
    """Nothing where the C library has none."""
    set_option = getattr(ctypes.CDLL(None), "mallopt", None)
    if set_option is not None:
        set_option(option, value)


@functools.cache
def _trim() -> Any:
    return getattr(ctypes.CDLL(None), "malloc_trim", None)


def peak_bytes() -> int:
    """The most that was resident of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
