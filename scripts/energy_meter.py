"""Is decoding timed as `natprec generate` times it, and what does the meter itself cost? Paired, in turn, on one model.

    python scripts/energy_meter.py quantized --rounds 15

Each round runs `natprec generate`'s loop, the decode cycle of `natprec energy` from the same prompt, and that cycle
beside a thread that reads a counter as NVML is read (a file of /proc here). Ratios are of neighbours in time; their
median and the interval of a sign test are printed as JSON, with the load of the machine. `--cpu-seconds` counts the
process' seconds instead, which other processes lengthen less; then the meter's thread is counted whole.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable

import torch

from natprec.energy.counters.base import Description
from natprec.energy.opening import open_model
from natprec.energy.recorder import Clock, Recorder
from natprec.energy.work import Decode
from natprec.runtime.generate import generate, prompt_ids
from natprec.runtime.load import Runnable

PROMPT = "Write a short story about a lighthouse keeper."


class ProcessFile:
    """A counter that costs what reading a file of the kernel costs."""

    description = Description("rapl", "/proc/self/stat", "package", None, ())

    def __init__(self) -> None:
        self._file = os.open("/proc/self/stat", os.O_RDONLY)

    def read(self) -> float:
        """Clock ticks, which never fall."""
        return float(os.pread(self._file, 400, 0).split()[13])

    def check(self) -> None:
        """Nobody else has it."""


def generated(runnable: Runnable, new: int, clock: Callable[[], float]) -> float:
    """Tokens per second of `natprec generate`: as it reports them, or after the first by CPU seconds."""
    if clock is time.perf_counter:
        found = generate(runnable, PROMPT, max_new_tokens=new, greedy=True)
        assert found.tokens_per_second is not None
        return found.tokens_per_second
    start = clock()
    generate(runnable, PROMPT, max_new_tokens=1, greedy=True)
    middle = clock()
    tokens = generate(runnable, PROMPT, max_new_tokens=new, greedy=True).tokens
    return (len(tokens) - 1) / (clock() - middle - (middle - start))


def cycled(work: Decode, clock: Callable[[], float]) -> float:
    """Tokens per second of one decode cycle."""
    start = clock()
    tokens = sum(work.cycle())
    return tokens / (clock() - start)


def metered(work: Decode, clock: Callable[[], float]) -> float:
    """The same beside the recorder's thread."""
    recorder = Recorder(ProcessFile(), Clock()).start()
    try:
        return cycled(work, clock)
    finally:
        recorder.stop()


def share(seconds: float = 5.0) -> float:
    """CPU seconds that the recorder's thread takes of each second, beside a process that sleeps."""
    recorder = Recorder(ProcessFile(), Clock()).start()
    start, used = time.perf_counter(), time.process_time()
    time.sleep(seconds)
    found = (time.process_time() - used) / (time.perf_counter() - start)
    recorder.stop()
    return found


def summary(ratios: list[float]) -> dict[str, float]:
    """Median, and the interval that holds it with 95 % by a sign test."""
    ordered, count = sorted(ratios), len(ratios)
    away = max(0, int((count - 1.96 * count**0.5) / 2))
    return {"median": statistics.median(ratios), "low": ordered[away], "high": ordered[-1 - away]}


def main() -> None:
    """Load, warm up, measure in turn."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", help="a checkpoint, or a model")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--new-tokens", type=int, default=128)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--cpu-seconds", action="store_true", help="of this process, in place of the clock's")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    runnable = open_model(options.folder, "cpu", False).runnable
    runnable.model.generation_config.eos_token_id = []  # neither loop may end early
    clock = time.process_time if options.cpu_seconds else time.perf_counter
    ids = torch.tensor([prompt_ids(runnable, PROMPT)])
    work = Decode(runnable, ids, options.new_tokens)
    rates: dict[str, list[float]] = {"generate": [], "energy": [], "metered": []}
    for _ in range(options.rounds + 1):
        rates["generate"].append(generated(runnable, options.new_tokens, clock))
        rates["energy"].append(cycled(work, clock))
        rates["metered"].append(metered(work, clock))
    rates = {name: several[1:] for name, several in rates.items()}
    pairs = {
        "energy_over_generate": [a / b for a, b in zip(rates["energy"], rates["generate"], strict=True)],
        "metered_over_energy": [a / b for a, b in zip(rates["metered"], rates["energy"], strict=True)],
    }
    report = {
        "seconds": "CPU" if options.cpu_seconds else "clock",
        "threads": options.threads,
        "load": os.getloadavg()[0],
        "share_of_the_meters_thread": share(),
        "tokens_per_second": {name: statistics.median(several) for name, several in rates.items()},
        **{name: summary(several) for name, several in pairs.items()},
    }
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
