"""The demo on a busy machine: its time beside busy processes, over its fair share of that machine.

    python scripts/busy_neighbours.py --neighbours 8

The run alone tells for how many seconds one thread of the command wants a core, and for how many two do. Beside N
processes that never wait, a fair scheduler gives T of N + T threads T / (N + T) of the cores: each second in which one
thread wants a core takes (N + 1) / cores, each second of two takes (N + 2) / cores. And a core that others keep busy is
slower: a product of matrices on one thread, which has nothing to wait for, tells by how much. What is left above 1 is
waiting that the command could have done without: threads that spin burn what the scheduler gives them.
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
PRODUCTS = """
import time, torch
torch.set_num_threads(1)
left, right = torch.randn(512, 576), torch.randn(576, 1536)
for _ in range(20):
    left @ right
start = time.process_time()
for _ in range(400):
    left @ right
print(time.process_time() - start)
"""
"""Seconds of the processor that one thread takes for a fixed piece of work."""


def products() -> float:
    """What `PRODUCTS` prints."""
    return float(subprocess.run([sys.executable, "-c", PRODUCTS], check=True, capture_output=True, text=True).stdout)


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
        quiet = products()
        seconds, cpu = timed(command)
        print(f"alone {seconds:.1f} s, CPU time {cpu:.1f} s", file=sys.stderr, flush=True)
        others = [subprocess.Popen([sys.executable, "-c", SPIN]) for _ in range(options.neighbours)]
        try:
            slower = products() / quiet
            busy, busy_cpu = timed(command)
        finally:
            for other in others:
                other.kill()
    two = max(0.0, cpu - seconds)  # seconds in which a second thread wanted a core
    share = ((seconds - two) * (options.neighbours + 1) + two * (options.neighbours + 2)) / cores
    print(json.dumps({
        "cores": cores, "neighbours": options.neighbours, "alone_s": round(seconds, 1), "alone_cpu_s": round(cpu, 1),
        "beside_s": round(busy, 1), "beside_cpu_s": round(busy_cpu, 1), "share_s": round(share, 1),
        "over_share": round(busy / share, 2), "slower_beside_others": round(slower, 2),
        "over_share_of_the_slower_core": round(busy / share / slower, 2),
    }, indent=2))  # fmt: skip


if __name__ == "__main__":
    main()
