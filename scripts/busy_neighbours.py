"""The demo on a busy machine: its time beside busy processes, over its fair share of that machine.

    python scripts/busy_neighbours.py --neighbours 8

Alone the command takes some seconds of CPU time. Beside N processes that never wait, T of its threads are T of N + T
that want to run, so that a fair scheduler gives it T / (N + T) of the machine's cores, and the time that it should take
is its CPU time over those. A ratio far above 1 means that threads wait by spinning: then what the scheduler gives is
burnt in waiting for a thread that has no core.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

SPIN = "while True: pass"


def timed(command: list[str]) -> tuple[float, float]:
    """Seconds, and seconds of CPU time, of a command that succeeds."""
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    after, end = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    return end - start, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    """Run alone, then beside others."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--eps", default="0.05")
    parser.add_argument("--neighbours", type=int, default=8)
    parser.add_argument("--tokens", help="to measure on and to judge on, fewer than the demo's")
    options = parser.parse_args()
    cores = len(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory(prefix="natprec-busy-") as scratch:
        out = str(Path(scratch) / "out")
        command = [sys.executable, "-m", "natprec", "quantize", "--model", options.model, "--eps", options.eps,
                   "--out", out, "--overwrite"]  # fmt: skip
        if options.tokens:
            command += ["--tokens", options.tokens, "--eval-tokens", options.tokens]
        seconds, cpu = timed(command)
        others = [subprocess.Popen([sys.executable, "-c", SPIN]) for _ in range(options.neighbours)]
        try:
            busy, busy_cpu = timed(command)
        finally:
            for other in others:
                other.kill()
    fair = cpu / (cores * cores / (options.neighbours + cores))
    print(json.dumps({
        "cores": cores, "neighbours": options.neighbours, "alone_s": round(seconds, 1), "alone_cpu_s": round(cpu, 1),
        "beside_s": round(busy, 1), "beside_cpu_s": round(busy_cpu, 1), "fair_share_s": round(fair, 1),
        "over_fair_share": round(busy / fair, 2),
    }, indent=2))  # fmt: skip


if __name__ == "__main__":
    main()
