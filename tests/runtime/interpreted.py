"""A checkpoint on the kernels of CUDA, on a GPU or in Triton's interpreter; a process of its own, as the kernels have.

    TRITON_INTERPRET=1 python -m tests.runtime.interpreted FOLDER cpu [MANY]
    python -m tests.runtime.interpreted FOLDER cuda [MANY]

prints as JSON which kernels ran; how far the logits of many tokens and of one are from those of the dense weights, over
the largest logit, and from those of the same kernels between transformers' modules; with how many tokens the product
was launched each time, and what followed it; how often values were written. From MANY tokens on weights are made dense.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from natprec.checkpoints.dense_reader import load_quantized
from natprec.runtime.kernels.cuda import Triton
from natprec.runtime.kernels.dispatch import KERNELS
from natprec.runtime.kernels.triton import launch, ops
from natprec.runtime.load import load
from natprec.runtime.replacements import Replaced
from tests.arrange import tokens

IDS = tokens(2, 24).ids


@torch.inference_mode()
def main(folder: Path, device: str, many: int) -> None:
    """Load, run, compare."""
    Triton.many = many
    if device == "cpu":
        ops.use_interpreter()
    launched: list[int] = []
    endings: list[str] = []
    written: list[int] = []
    original, values = launch.launch, launch.launch_values

    def counted(out: torch.Tensor, x: torch.Tensor, weight: Any, epilogue: Any, *rest: Any, **named: Any) -> None:
        launched.append(len(x))
        endings.append(epilogue.name)
        original(out, x, weight, epilogue, *rest, **named)

    def counted_values(out: torch.Tensor, *rest: Any) -> None:
        written.append(len(out))
        values(out, *rest)

    runnable = load(folder, device=device, kernels=KERNELS["cuda"])
    with mock.patch.object(sys.modules["natprec.runtime.load"], "replace", return_value=Replaced()):
        plain = load(folder, device=device, kernels=KERNELS["cuda"])
    dense = load_quantized(folder)
    differences, apart = [], []
    for ids in (IDS, IDS[:1, :1]):
        expected = dense(input_ids=ids).logits
        with mock.patch.multiple(launch, launch=counted, launch_values=counted_values):
            found = runnable(input_ids=ids.to(device)).logits.cpu()
        differences.append(float((found - expected).abs().max() / expected.abs().max()))
        unfused = plain(input_ids=ids.to(device)).logits.cpu()
        apart.append(float((found - unfused).abs().max() / expected.abs().max()))
    kernels = sorted({chosen.kernel for chosen in runnable.kernels.values()})
    found = {"kernels": kernels, "many": differences[0], "one": differences[1], "apart": max(apart)}
    replaced = runnable.replaced
    found |= {"norms": replaced.norms, "gated": replaced.gated, "residuals": replaced.residuals}
    print(json.dumps(found | {"launched": launched, "endings": endings, "written": len(written)}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]) if sys.argv[3:] else Triton.many)
