"""Cases of GPTQ's columns, and what one of them shows; `python -m tests.gpu.columns_cases cpu|mutations` prints JSON.

With TRITON_INTERPRET=1 the kernel runs on CPU tensors. A process of its own, as the interpreter is chosen at import.
"""

from __future__ import annotations

import importlib
import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from natprec.formats.codebook import E2M1, E4M3, Float
from natprec.gpu import columns
from natprec.gpu.columns import one_by_one, round_columns

CASES: tuple[tuple[int, int, Float | None], ...] = (
    (64, 33, None), (37, 71, None), (24, 33, E2M1), (19, 64, E4M3),
)  # fmt: skip
"""Columns, rows and codebook; ragged ones too."""

INTEGERS, FLOATS = (21, 33, None), (21, 33, E2M1)
MUTATIONS = {
    "errors not pushed": (INTEGERS, "tl.sum(push[:, None] * lost, 0)", "0.0 * tl.sum(push[:, None] * lost, 0)"),
    "the first error alone pushed": (INTEGERS, "mask=k < i,", "mask=k < 1,"),
    "not rounded": (INTEGERS, "code = (wanted + 12582912.0) - 12582912.0", "code = wanted"),
    "not clamped": (INTEGERS, "tl.minimum(tl.maximum(tl.div_rn(left - origin, step), least), most)",
                    "tl.div_rn(left - origin, step)"),
    "no offset": (INTEGERS, "value = code * step + origin", "value = code * step"),
    "no pivot": (INTEGERS, "error = tl.div_rn(left - value, pivot)", "error = left - value"),
    "no sign": (FLOATS, "tl.where(wanted.to(tl.int32, bitcast=True) < 0, -size, size)", "size"),
    "subnormals as normal": (FLOATS, "bitcast=True), LEAST)", "bitcast=True), 0.0)"),
}  # fmt: skip
"""What is wrong: a case that must show it, a text in the kernel, what it becomes."""


def made(count: int, rows: int, codebook: Float | None, place: Callable[[Tensor], Tensor]) -> list[Tensor]:
    """Arguments of `round_columns`; `block` is a slice of a wider matrix, as in `gptq`."""
    draw = torch.Generator().manual_seed(count)
    whole, factor = torch.randn(count + 5, rows, generator=draw), torch.randn(count + 3, count + 3, generator=draw)
    factor = torch.triu(factor * 0.1) + 2 * torch.eye(count + 3)
    scale = torch.rand(count, rows, generator=draw) * 0.2 + 0.1
    offset = torch.randn(count, rows, generator=draw) * 0.1 * (codebook is None)
    ends = (-4.0, 3.0) if codebook is None else (codebook.smallest, codebook.largest)
    low, high = (torch.full((rows,), end) for end in ends)
    values = [place(each) for each in (whole, factor, scale, offset, low, high)]
    return [values[0][2 : 2 + count], values[1][1 : 1 + count, 1 : 1 + count], *values[2:]]


def run(case: tuple[int, int, Float | None], place: Callable[[Tensor], Tensor]) -> dict[str, Any]:
    """How far the kernel is from the loop over torch's operations; codes are compared as values of the codebook."""
    count, rows, codebook = case
    expected, actual = made(*case, lambda value: value), made(*case, place)
    errors, chosen = one_by_one(*expected, codebook)
    found_errors, found_chosen = round_columns(*actual, codebook)
    return {
        "name": f"{count} × {rows} {codebook.name if codebook else 'integers'}",
        "codes_that_differ": int((found_chosen.cpu() != chosen).sum()),
        "signs_that_differ": int((torch.signbit(found_chosen.cpu()) != torch.signbit(chosen)).sum()) * bool(codebook),
        "error": float((found_errors.cpu() - errors).abs().max()),
        "value": float((actual[0].cpu() - expected[0]).abs().max()),
    }


def wrong(result: dict[str, Any]) -> str:
    """What is wrong with a result; empty: nothing."""
    if result["codes_that_differ"] or result["signs_that_differ"]:
        return "codes"
    return "" if result["error"] < 1e-4 and result["value"] < 1e-4 else "errors"


def main(what: str) -> None:
    """Print the results of one kind, from the interpreter."""
    columns.use_interpreter()
    if what == "cpu":
        print(json.dumps([run(case, lambda value: value.clone()) for case in CASES]))
        return
    source, results = Path(columns.__file__).with_name("columns_kernel.py").read_text(), {}
    for number, (name, (case, old, new)) in enumerate(MUTATIONS.items()):
        assert source.count(old) == 1, f"{old!r} is not there once"
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / f"mutated{number}.py").write_text(source.replace(old, new))
            sys.path.insert(0, folder)
            sys.modules["natprec.gpu.columns_kernel"] = importlib.import_module(f"mutated{number}")
            results[name] = run(case, lambda value: value.clone())
            sys.path.remove(folder)
    print(json.dumps(results))


if __name__ == "__main__":
    main(*sys.argv[1:])
