"""Which index to install torch from: prints its address, or nothing for the package index alone.

    python scripts/torch_index.py auto

`auto` is the small build for CPUs where no NVIDIA GPU is found and its index answers within a few seconds. It runs
before anything is installed, so that it needs Python alone.
"""

from __future__ import annotations

import platform
import shutil
import sys
import threading
import urllib.request

CPU = "https://download.pytorch.org/whl/cpu"
SECONDS = 5.0
"""To wait for an answer."""


def chosen(asked: str, gpu: bool, linux: bool, answers: bool) -> str:
    """The index for what was asked and what there is.

    >>> chosen("auto", gpu=False, linux=True, answers=True) == CPU, chosen("auto", True, True, True)
    (True, '')
    """
    if asked != "auto":
        return asked
    return CPU if linux and not gpu and answers else ""


def answers(address: str = f"{CPU}/torch/", seconds: float = SECONDS) -> bool:
    """Whether an index can be had from here; however many addresses its name has, it is asked for so long."""
    found: list[bool] = []

    def ask() -> None:
        try:
            with urllib.request.urlopen(urllib.request.Request(address, method="HEAD"), timeout=seconds):
                found.append(True)
        except (OSError, ValueError):
            found.append(False)

    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    asking.join(seconds)
    return bool(found) and found[0]


def main() -> None:
    """Print the index, and on standard error what was chosen and how to have the other build."""
    asked = sys.argv[1] if len(sys.argv) > 1 else "auto"
    gpu, linux = shutil.which("nvidia-smi") is not None, platform.system() == "Linux"
    needed = asked == "auto" and linux and not gpu
    found = chosen(asked, gpu, linux, needed and answers())
    if needed and found:
        print("no GPU found: torch for CPUs; for CUDA: make TORCH_INDEX= ...", file=sys.stderr)
    elif needed:
        print(f"no GPU found, but {CPU} is out of reach: torch comes from the package index", file=sys.stderr)
    print(found)


if __name__ == "__main__":
    main()
