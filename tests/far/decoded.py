"""Counts what decoding a token asks of a device, on the kernels of CUDA; prints JSON. For a process of its own.

    python -m tests.far.decoded FOLDER …        # of checkpoints, on the device of `tests.far.device`

A kernel of ours counts as one operation, as on a GPU; what it computes there is its specification's. Counted is the
second token after the prompt: what is set up for the first has been. Beside it: how far the logits of all are from
those of the dense weights, over the largest.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from tests.far import device

KEEP = device.register()

import torch  # noqa: E402

from natprec.checkpoints.dense_reader import load_quantized  # noqa: E402
from natprec.runtime.decoding import Decoding  # noqa: E402
from natprec.runtime.kernels.dispatch import KERNELS  # noqa: E402
from natprec.runtime.load import Runnable, load  # noqa: E402

PROMPT, WRITTEN = [3, 1, 4, 1, 5], [2, 7]


def decoded(folder: Path) -> dict[str, Any]:
    """What one token asks for."""
    return _counted(folder, load(folder, device=device.NAME, kernels=KERNELS["cuda"]))


@torch.no_grad()
def _counted(folder: Path, runnable: Runnable) -> dict[str, Any]:
    decoding = Decoding(runnable, len(PROMPT) + 8)
    logits = [decoding.begin(PROMPT).cpu(), decoding.next(WRITTEN[0]).cpu()]
    with device.counting() as counts:
        found = decoding.next(WRITTEN[1])
    logits.append(found.cpu())
    expected = load_quantized(folder)(input_ids=torch.tensor([PROMPT + WRITTEN])).logits[0, len(PROMPT) - 1 :]
    difference = (torch.stack(logits) - expected).abs().max() / expected.abs().max()
    return counts.to_json() | {"difference": float(difference)}


if __name__ == "__main__":
    json.dump([decoded(Path(folder)) for folder in sys.argv[1:]], sys.stdout)
