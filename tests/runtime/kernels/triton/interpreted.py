"""Runs the kernel in Triton's interpreter; a process of its own, since the interpreter is chosen before import.

    TRITON_INTERPRET=1 python -m tests.runtime.kernels.triton.interpreted WHAT

WHAT is cases, mutations or guard; of the kernel that writes a weight's values, values or "mutations of values"; of
those that scale and norm tokens, tokens or "mutations of tokens". It prints what happened as JSON; the tests beside
this judge it.
"""

from __future__ import annotations

import ctypes
import importlib
import json
import mmap
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from natprec.formats import CHANNEL
from natprec.runtime.kernels import Epilogue
from natprec.runtime.kernels.triton import codes, dense_kernel, fused, kernel, launch, split, tokens_kernel
from tests.runtime.kernels.triton.cases import (
    CASES,
    EPILOGUES,
    MANY,
    TOKENS,
    VALUES,
    Case,
    Tokens,
    Values,
    run,
    run_tokens,
    run_values,
)

SOURCES = {
    "planar_linear": (kernel, codes, fused, split),
    "planar_values": (dense_kernel, codes),
    "scaled_tokens": (tokens_kernel, fused),
    "normed_tokens": (tokens_kernel, fused),
}
"""Of each kernel: its module, and those that it calls."""


def guarded(value: Tensor) -> Tensor:
    """A copy that ends where a page begins that nobody may read."""
    page = mmap.PAGESIZE
    size = -(-value.nbytes // page) * page
    memory = mmap.mmap(-1, size + page)
    start = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    assert ctypes.CDLL(None, use_errno=True).mprotect(ctypes.c_void_p(start + size), page, 0) == 0
    copy = torch.frombuffer(memory, dtype=value.dtype, count=value.numel(), offset=size - value.nbytes)
    return copy.view(value.shape).copy_(value)


RAGGED = Case(4, columns=331, group=CHANNEL)
GATED = Case(4, epilogue=EPILOGUES[0], biased=True)
ROUNDED = Case(4, epilogue=Epilogue("silu", output_scale=0.006), symmetric=False)
CODED = Case(8, coded=True, symmetric=False)
SCALED = Case(4, scaled=True)
SHARED = Case(4, columns=960, programs=4)
FP4, MICRO, FP8 = Case(4, floats="nvfp4"), Case(4, floats="mxfp4"), Case(8, floats="fp8-channel")
MUTATIONS = {
    "a plane shifted by one code": (Case(4), "STEP * WIDTH % LANE + tl", "(STEP + 1) * WIDTH % LANE + tl"),
    "the first plane for the second": (Case(3), " steps(words1, first", " steps(words0, first"),
    "the first group's scale": (Case(4), "(first + step) * R // GROUP * PADDED", "first * 0"),
    "the first turn's bits for all": (Case(3), "shifts += first", "shifts += 0 * first"),
    "no zero point": (ROUNDED, "None if WIDE else z, BITS", "None, BITS"),
    "no wide zero point": (CODED, "part -= _along(heights", "part -= 0 * _along(heights"),
    "no token scale": (CODED, "value *= tl.load(x_scale", "value += 0 * tl.load(x_scale"),
    "one token's scale for all": (SCALED, "tl.load(x_scale + rm", "tl.load(x_scale + 0 * rm"),
    "columns not masked": (RAGGED, "mask=k < K - column, other=0", "mask=k >= 0, other=0"),
    "sums in float16": (Case(4), "tl.dot(values, tl.trans(weights), sums, out_dtype=sums.dtype)",
                        "(sums + tl.dot(values, tl.trans(weights))).to(tl.float16).to(sums.dtype)"),
    "tokens not masked": (Case(4), "(rm < M)[:, None] &", "(rm >= 0)[:, None] &"),
    "rows not masked": (Case(4), "(rn < N)[None, :]", "(rn >= 0)[None, :]"),
    "no activation": (GATED, "value = activate(value, ACTIVATION)", "pass"),
    "no bias": (GATED, "value += tl.load(bias", "value += 0 * tl.load(bias"),
    "a sum for the product": (GATED, "value *= tl.load(multiplier", "value += tl.load(multiplier"),
    "truncated": (ROUNDED, "127.0) + 12582912.0 - 12582912.0", "127.0)"),
    "not clamped": (ROUNDED, "tl.clamp(value, -128.0, 127.0) +", "value +"),
    "one program's sum for all": (SHARED, "tl.load(sums + other", "tl.load(sums + number"),
    "the last but one finishes": (SHARED, "== programs - 1", "== programs - 2"),
    "counters left as they are": (SHARED, "tl.store(arrived + output, 0)", "pass"),
    "no sign of a float": (FP8, "(code & SIGNS) << (16 - BITS) |", ""),
    "a mantissa one bit lower": (FP4, "<< (10 - MANTISSA)", "<< (9 - MANTISSA)"),
    "no outer scale": (FP4, "(tl.load(outer) * (256.0 * UNIT))", "(256.0 * UNIT)"),
    "exponents one bit lower": (MICRO, "to(tl.int32) << 23,", "to(tl.int32) << 22,"),
    "no unit of floats": (FP8, "if UNIT != 1:", "if UNIT == 1:"),
    "columns read twice": (SHARED, "begin = tl.program_id(2) * share", "begin = 0"),
}  # fmt: skip
"""What is wrong: a case that must show it, a text in the kernel or what it calls, what it becomes."""
OF_VALUES = {
    "the wrong row": (Values(4), "words = rn[:, None]", "words = (rn ^ 1)[:, None]"),
    "one group's scale for all": (Values(4), "group = (first + step) * R // GROUP", "group = first * 0"),
    "no unit": (Values(4), "UNIT) * factor", "UNIT) * 1.0"),
    "no zero point": (Values(4, symmetric=False), "numbers(code, z, BITS", "numbers(code, None, BITS"),
    "a column further": (Values(4), "line + k", "line + 1 + k"),
    "rows not masked": (Values(4), "(rn < N)[:, None] &", "(rn >= 0)[:, None] &"),
    "columns not masked": (Values(4), "& (k < K)", "& (k >= 0)"),
    "from the first row on": (Values(4, begin=128), "rn = begin + tl", "rn = 0 * begin + tl"),
}
"""The same of the kernel that writes values."""

OF_TOKENS = {
    "the last turn's largest": (Tokens(False, 3, 4500), "tl.maximum(most, tl.abs(", "tl.abs(("),
    "signs kept": (Tokens(True), "tl.abs(tl.load(x", "(tl.load(x"),
    "no step of codes": (Tokens(True), "127.0) if CODES", "1.0) if CODES"),
    "nothing over nothing": (Tokens(False), "tl.where(largest > 0", "tl.where(largest >= 0"),
    "codes truncated": (Tokens(True), "value = rounded(value)", "value = value * 1.0"),
    "the first token for all": (Tokens(False), "values += row.to(tl.int64) * K", "values += row.to(tl.int64) * 0"),
    "columns not masked": (Tokens(False, 4, 37), "values.dtype.element_ty), mask=inside)", "values.dtype.element_ty))"),
    "a sum for the mean": (Tokens(None), "tl.sum(squares, 0) / K", "tl.sum(squares, 0)"),
    "no eps": (Tokens(None), "/ K + eps", "/ K + eps * 1e-3"),
    "one weight for all": (Tokens(None), "tl.load(weight + begin + k,", "tl.load(weight + 0 * k,"),
    "the last turn's squares": (Tokens(None, 3, 4500), "squares += value", "squares = value"),
}  # fmt: skip
"""The same of the kernels that scale and norm tokens."""


def mutated(folder: Path, old: str, new: str, modules: Sequence[ModuleType]) -> ModuleType:
    """The first of these modules with one text replaced, in it or in the others, which it calls."""
    sources = {module.__name__.rpartition(".")[2]: Path(str(module.__file__)).read_text() for module in modules}
    first, *called = sources
    assert sum(source.count(old) for source in sources.values()) == 1, f"{old!r} is not there once"
    for name, source in sources.items():
        source = source.replace(old, new)
        for other in called:
            source = source.replace(f"from natprec.runtime.kernels.triton.{other}", f"from {other}_{folder.name}")
        (folder / f"{name}_{folder.name}.py").write_text(source)
    sys.path.insert(0, str(folder))
    return importlib.import_module(f"{first}_{folder.name}")


def main(what: str) -> None:
    """Print the results of one kind."""
    if what == "cases":
        print(json.dumps([run(case, guarded) for case in [*CASES, MANY]]))
        return
    if what == "values":
        print(json.dumps([run_values(case, guarded) for case in VALUES]))
        return
    if what == "tokens":
        print(json.dumps([run_tokens(case, guarded) for case in TOKENS]))
        return
    past_the_end = {"tokens read past the end": (Case(4, columns=1024), "tl.minimum(rm, M - 1)", "rm")}
    mutations: dict[str, tuple[Any, str, str]] = {
        "mutations": MUTATIONS,
        "mutations of values": OF_VALUES,
        "mutations of tokens": OF_TOKENS,
        "guard": past_the_end,
    }[what]
    results = {}
    for name, (case, old, new) in mutations.items():
        kernel, execute = kernel_of(case)
        with tempfile.TemporaryDirectory() as folder:
            setattr(launch, kernel, getattr(mutated(Path(folder), old, new, SOURCES[kernel]), kernel))
            launch._ARRIVED.clear()
            results[name] = execute(case, guarded if what == "guard" else Tensor.contiguous)
    print(json.dumps(results))


def kernel_of(case: Case | Values | Tokens) -> tuple[str, Callable[..., dict[str, object]]]:
    """Its name, and what runs it."""
    if isinstance(case, Case):
        return "planar_linear", run
    if isinstance(case, Values):
        return "planar_values", run_values
    return "normed_tokens" if case.codes is None else "scaled_tokens", run_tokens


if __name__ == "__main__":
    main(*sys.argv[1:])
