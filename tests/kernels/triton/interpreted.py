"""Runs the kernel in Triton's interpreter; a process of its own, since the interpreter is chosen before import.

    TRITON_INTERPRET=1 python -m tests.kernels.triton.interpreted [mutations | guard]

prints what happened as JSON; the tests beside this judge it.
"""

from __future__ import annotations

import ctypes
import importlib
import itertools
import json
import mmap
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor

from natprec.formats import NumberFormat
from natprec.formats.number_format import CHANNEL
from natprec.kernels import Epilogue, reference
from natprec.kernels.layout import DEPTH_OF_CODES, DEPTH_OF_FLOATS, planar
from natprec.kernels.triton import fused, kernel, launch
from natprec.kernels.triton.tiles import Tile
from natprec.quantizers import QuantizedTensor

CANARY = 77.0
PLAIN = Epilogue()


@dataclass(frozen=True)
class Case:
    bits: int
    coded: bool = False  # int8 activations
    group: int = 64
    symmetric: bool = True
    epilogue: Epilogue = PLAIN
    biased: bool = False
    left: bool = False
    tokens: int = 13
    rows: int = 150
    columns: int = 320
    dtype: torch.dtype = torch.float16

    @property
    def name(self) -> str:
        inputs = "A8" if self.coded else str(self.dtype).removeprefix("torch.")
        shape = f"{self.tokens}x{self.rows}x{self.columns}"
        side = "left" if self.left else "right"
        fmt = NumberFormat(self.bits, self.group, self.symmetric).name
        return f"{fmt} {inputs} {self.epilogue.name}{' bias' if self.biased else ''} {shape} {side}"


EPILOGUES = [
    Epilogue("silu", gated=True, residual=True),
    Epilogue("gelu", output_scale=0.011),
    Epilogue("none", residual=True),
    Epilogue("relu", gated=True, output_scale=0.008),
    Epilogue("gelu_tanh", residual=True, output_scale=0.012),
    Epilogue("silu", output_scale=0.006),
    Epilogue(),
]
GROUPS = [64, 32, CHANNEL, 160]

CASES = [
    Case(
        bits,
        coded,
        group=GROUPS[(bits + coded) % 4],
        symmetric=(bits + coded) % 2 == 0,
        epilogue=EPILOGUES[(bits + 3 * coded) % 7],
        biased=bits % 3 != 0,
        left=bits % 2 == 1,
    )
    for bits, coded in itertools.product(range(2, 9), (False, True))
] + [
    Case(4, dtype=torch.bfloat16, symmetric=False),
    Case(8, dtype=torch.bfloat16, symmetric=False, group=CHANNEL, columns=331),
    Case(8, coded=True, symmetric=False, group=CHANNEL, columns=331, left=True),
    Case(3, group=96, columns=288, symmetric=False),
    Case(8, coded=True, symmetric=False, group=64),
    Case(4, tokens=1, rows=1, columns=64),
]
MANY = Case(4, epilogue=Epilogue("silu", residual=True, output_scale=0.01), tokens=64, rows=1536, columns=128)
"""98,304 int8 outputs."""


def made(fmt: NumberFormat, rows: int, columns: int, draw: torch.Generator) -> QuantizedTensor:
    """Codes, zero points and scales of both signs, all random."""
    low, high = fmt.code_range
    groups = fmt.groups(columns)
    codes = torch.randint(low, high + 1, (rows, columns), generator=draw, dtype=torch.int8)
    zero = torch.randint(low, high + 1, (rows, groups), generator=draw, dtype=torch.int8)
    sign = 1 - 2 * torch.randint(0, 2, (rows, groups), generator=draw)
    scale = ((0.5 + torch.rand(rows, groups, generator=draw)) * sign / (high * columns**0.5)).half().float()
    return QuantizedTensor(fmt, codes, scale, None if fmt.symmetric else zero)


def guarded(value: Tensor) -> Tensor:
    """A copy that ends where a page begins that nobody may read."""
    page = mmap.PAGESIZE
    size = -(-value.nbytes // page) * page
    memory = mmap.mmap(-1, size + page)
    start = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    assert ctypes.CDLL(None, use_errno=True).mprotect(ctypes.c_void_p(start + size), page, 0) == 0
    copy = torch.frombuffer(memory, dtype=value.dtype, count=value.numel(), offset=size - value.nbytes)
    return copy.view(value.shape).copy_(value)


def run(case: Case, guard: Callable[[Tensor], Tensor] = guarded) -> dict[str, object]:
    """Launch, compare with the specification, look at what lies round the output."""
    draw = torch.Generator().manual_seed(case.bits + 10 * case.coded)
    fmt = NumberFormat(case.bits, case.group, case.symmetric)
    weight = made(fmt, case.rows, case.columns, draw)
    x = torch.randn(case.tokens, case.columns, generator=draw).to(case.dtype)
    x, x_scale = reference.quantize_tokens(x) if case.coded else (x, None)
    shape = (case.tokens, case.rows)
    bias = torch.randn(case.rows, generator=draw).half() if case.biased else None
    multiplier = torch.randn(shape, generator=draw).half() if case.epilogue.gated else None
    before = reference.linear(
        x,
        weight,
        x_scale=x_scale,
        bias=bias,
        epilogue=replace(case.epilogue, residual=False, output_scale=None),
        multiplier=multiplier,
    )
    residual = None
    if case.epilogue.residual:  # so that most of the sum cancels, where the output is not rounded
        quantized = case.epilogue.output_scale is not None
        residual = torch.randn(shape, generator=draw).half() if quantized else -before.float()
    expected = reference.linear(
        x, weight, x_scale=x_scale, bias=bias, epilogue=case.epilogue, multiplier=multiplier, residual=residual
    )
    dtype = torch.int8 if expected.dtype == torch.int8 else torch.float32
    padded = torch.full((case.tokens + 8, case.rows), CANARY, dtype=dtype)
    out = padded[4:-4]
    stored = planar(weight, DEPTH_OF_CODES if case.coded else DEPTH_OF_FLOATS)
    stored = replace(
        stored,
        planes=tuple(guard(plane) for plane in stored.planes),
        scale=guard(stored.scale.half()),
        zero_point=None if stored.zero_point is None else guard(stored.zero_point),
    )
    optional = [None if value is None else guard(value) for value in (x_scale, bias, multiplier, residual)]
    tile = Tile(64 if case.tokens > 16 else 16, 128, left=case.left)
    launch.launch(out, guard(x), stored, case.epilogue, *optional, tile=tile)
    difference = (out.double() - expected.double()).abs()
    return {
        "name": case.name,
        "integer": out.dtype == torch.int8,
        "relative": float(difference.max() / before.abs().max()),
        "largest": float(difference.max()),
        "different": int((difference > 0).sum()),
        "of": out.numel(),
        "canaries": bool((padded[:4] == CANARY).all() and (padded[-4:] == CANARY).all()),
    }


RAGGED = Case(4, columns=331, group=CHANNEL)
GATED = Case(4, epilogue=EPILOGUES[0], biased=True)
ROUNDED = Case(4, epilogue=Epilogue("silu", output_scale=0.006), symmetric=False)
CODED = Case(8, coded=True, symmetric=False)
MUTATIONS = {
    "a plane shifted by one code": (Case(4), "(FIRST + tl.arange(0, JOIN))", "(FIRST + 1 + tl.arange(0, JOIN))"),
    "the first plane for the second": (Case(3), "_steps(words1, step, PLANE1", "_steps(words0, step, PLANE1"),
    "the first group's scale": (Case(4), "(tile * TILE + step * R) // GROUP * PADDED", "tile * 0"),
    "no zero point": (ROUNDED, "None if WIDE else z, BITS", "None, BITS"),
    "no wide zero point": (CODED, "part -= _along(heights", "part -= 0 * _along(heights"),
    "no token scale": (CODED, "value *= tl.load(x_scale", "value += 0 * tl.load(x_scale"),
    "columns not masked": (RAGGED, "mask=k < K - column, other=0", "mask=k >= 0, other=0"),
    "sums in float16": (Case(4), "tl.dot(values, weights, sums, out_dtype=sums.dtype)",
                        "(sums + tl.dot(values, weights)).to(tl.float16).to(sums.dtype)"),
    "tokens not masked": (Case(4), "(rm < M)[:, None]", "(rm >= 0)[:, None]"),
    "rows not masked": (Case(4), "(rn < N)[None, :]", "(rn >= 0)[None, :]"),
    "no activation": (GATED, "value = activate(value, ACTIVATION)", "pass"),
    "no bias": (GATED, "value += tl.load(bias", "value += 0 * tl.load(bias"),
    "a sum for the product": (GATED, "value *= tl.load(multiplier", "value += tl.load(multiplier"),
    "truncated": (ROUNDED, "127.0) + 12582912.0 - 12582912.0", "127.0)"),
    "not clamped": (ROUNDED, "tl.clamp(value, -128.0, 127.0) +", "value +"),
}  # fmt: skip
"""What is wrong: a case that must show it, a text in the kernel or its epilogue, what it becomes."""


def mutated(folder: Path, old: str, new: str) -> ModuleType:
    """The kernel's module with one text replaced, in it or in its epilogue."""
    sources = {name: Path(str(module.__file__)).read_text() for name, module in (("kernel", kernel), ("fused", fused))}
    assert sum(source.count(old) for source in sources.values()) == 1, f"{old!r} is not there once"
    for name, source in sources.items():
        source = source.replace(old, new).replace("natprec.kernels.triton.fused", f"fused_{folder.name}")
        (folder / f"{name}_{folder.name}.py").write_text(source)
    sys.path.insert(0, str(folder))
    return importlib.import_module(f"kernel_{folder.name}")


def main(what: str) -> None:
    """Print the results of one kind."""
    if what == "cases":
        print(json.dumps([run(case) for case in [*CASES, MANY]]))
        return
    past_the_end = {"tokens read past the end": (Case(4, columns=1024), "tl.minimum(rm, M - 1)", "rm")}
    results = {}
    for name, (case, old, new) in (past_the_end if what == "guard" else MUTATIONS).items():
        with tempfile.TemporaryDirectory() as folder:
            launch.planar_linear = mutated(Path(folder), old, new).planar_linear
            results[name] = run(case, guarded if what == "guard" else Tensor.contiguous)
    print(json.dumps(results))


if __name__ == "__main__":
    main(*sys.argv[1:])
