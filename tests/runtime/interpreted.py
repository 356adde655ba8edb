"""A checkpoint on the kernels of CUDA, on a GPU or in Triton's interpreter; a process of its own, as the kernels have.

    TRITON_INTERPRET=1 python -m tests.runtime.interpreted FOLDER cpu [MANY]
    python -m tests.runtime.interpreted FOLDER cuda [MANY]

prints as JSON which kernels ran, how far the logits of many tokens and of one are from those of the dense weights, over
the largest logit, with how many tokens the product was launched each time, and how often values were written. From
MANY tokens on weights are made dense.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch

from natprec.checkpoints.dense_reader import load_quantized
from natprec.runtime.kernels.cuda import Triton
from natprec.runtime.kernels.dispatch import KERNELS
from natprec.runtime.kernels.triton import launch, ops
from natprec.runtime.load import load
from tests.arrange import tokens

IDS = tokens(2, 24).ids


@torch.inference_mode()
def main(folder: Path, device: str, many: int) -> None:
    """Load, run, compare."""
    Triton.many = many
    if device == "cpu":
        ops.use_interpreter()
    launched: list[int] = []
    written: list[int] = []
    original, values = launch.launch, launch.launch_values

    def counted(out: torch.Tensor, x: torch.Tensor, *rest: Any, **named: Any) -> None:
        launched.append(len(x))
        original(out, x, *rest, **named)

    def counted_values(out: torch.Tensor, *rest: Any) -> None:
        written.append(len(out))
        values(out, *rest)

    launch.launch, launch.launch_values = counted, counted_values
    runnable = load(folder, device=device, kernels=KERNELS["cuda"])
    dense = load_quantized(folder)
    differences = []
    for ids in (IDS, IDS[:1, :1]):
        expected = dense(input_ids=ids).logits
        found = runnable(input_ids=ids.to(device)).logits.cpu()
        differences.append(float((found - expected).abs().max() / expected.abs().max()))
    kernels = sorted({chosen.kernel for chosen in runnable.kernels.values()})
    found = {"kernels": kernels, "many": differences[0], "one": differences[1]}
    print(json.dumps(found | {"launched": launched, "written": len(written)}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]) if sys.argv[3:] else Triton.many)
