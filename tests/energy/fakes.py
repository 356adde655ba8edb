"""A clock that only work moves, and counters that go wrong in every way that a counter can."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

from natprec.energy.counters.base import LEFT_OUT, Description
from natprec.energy.recorder import EVERY, Clock, Recorder
from natprec.energy.series import CounterFault

START = 1_800_000_000.0


class FakeClock(Clock):
    """Time passes when work is done; a recorder is polled as often as its thread would."""

    def __init__(self) -> None:
        self.time, self.jump = 0.0, 0.0
        self.recorder: Recorder | None = None
        super().__init__(lambda: START + self.time + self.jump, lambda: self.time, self.advance)

    def advance(self, seconds: float) -> None:
        end = self.time + seconds
        while self.time < end - 1e-12:
            self.time = min(end, self.time + EVERY)
            if self.recorder is not None:
                self.recorder.poll()


class Steps:
    """Work of `seconds` a step, so many tokens each."""

    def __init__(self, clock: FakeClock, seconds: float, tokens: int, steps: int = 10) -> None:
        self.clock, self.seconds, self.tokens, self.steps = clock, seconds, tokens, steps

    def cycle(self) -> Iterator[int]:
        for _ in range(self.steps):
            self.clock.advance(self.seconds)
            yield self.tokens


class FakeCounter:
    """A running total by a function of the fake clock's seconds."""

    def __init__(self, clock: FakeClock, total: Callable[[float], Any]) -> None:
        self.clock, self.total = clock, total
        self.description = Description("nvml", "GPU 0, fake", "gpu", 0.001, LEFT_OUT["gpu"])

    def read(self) -> float:
        value = self.total(self.clock.time)
        if value is None:
            raise CounterFault("the counter gave no value")
        return value

    def check(self) -> None:
        """Nobody else is there."""


def stair(watts: float, every: float) -> Callable[[float], float]:
    """A total that is renewed once in `every` seconds."""
    return lambda seconds: 1000.0 + watts * every * math.floor(seconds / every + 1e-9)


def recorded(clock: FakeClock, total: Callable[[float], Any]) -> Recorder:
    clock.recorder = Recorder(FakeCounter(clock, total), clock)
    return clock.recorder


def write_log(file: Path, start: float, stop: float, watts: float, every: float, kind: str = "joules") -> Path:
    """A meter's log from `start` to `stop`."""
    count = math.ceil((stop - start) / every) + 1
    rows = [(start + at * every, watts * at * every if kind == "joules" else watts) for at in range(count)]
    file.write_text(f"unix_seconds,{kind}\n" + "".join(f"{time!r},{value!r}\n" for time, value in rows))
    return file


def fake_nvml(gpus: int = 1, processes: tuple[int, ...] = (), mig: bool = False, energy: Any = 5000) -> Any:
    """A stand-in for the module `pynvml`.

    Args:
        processes: that use each GPU; `energy`: millijoules, or a function that gives them.
    """
    module: Any = ModuleType("pynvml")

    class NVMLError(Exception):
        pass

    class Process:
        def __init__(self, pid: int) -> None:
            self.pid = pid

    def total(handle: str) -> Any:
        value = energy() if callable(energy) else energy
        if isinstance(value, str):
            raise NVMLError(value)
        return value

    def modes(handle: str) -> tuple[int, int]:
        if not mig:
            raise NVMLError("Not Supported")
        return 1, 1

    module.NVMLError = NVMLError
    module.nvmlInit = lambda: None
    module.nvmlDeviceGetCount = lambda: gpus
    module.nvmlDeviceGetHandleByIndex = lambda index: f"GPU-{index}"
    module.nvmlDeviceGetHandleByUUID = lambda name: name
    module.nvmlDeviceGetName = lambda handle: b"NVIDIA H200"
    module.nvmlDeviceGetUUID = lambda handle: handle
    module.nvmlSystemGetDriverVersion = lambda: "580.00"
    module.nvmlDeviceGetPowerManagementLimit = lambda handle: 700_000
    module.nvmlDeviceGetMigMode = modes
    module.nvmlDeviceGetComputeRunningProcesses = lambda handle: [Process(pid) for pid in processes]
    module.nvmlDeviceGetTotalEnergyConsumption = total
    return module
