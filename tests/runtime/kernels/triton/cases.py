"""Products for the kernel: launched in whatever Triton runs on, and held against the specification in float64."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from natprec.formats import CHANNEL, Float, Format, PerBlock, PerTensor, integer, parse_format
from natprec.formats.codebook import E4M3
from natprec.quantizers import QuantizedTensor
from natprec.runtime.kernels import Epilogue, decoder_ops, reference
from natprec.runtime.kernels.layout import DEPTH_OF_CODES, DEPTH_OF_FLOATS, ROWS, PlanarWeight, planar
from natprec.runtime.kernels.triton import launch
from natprec.runtime.kernels.triton.tiles import Tile

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
    programs: int = 1  # that share the columns
    dtype: torch.dtype = torch.float16
    floats: str = ""  # the name of a format in place of bits and group
    scaled: bool = False  # float activations in units of each token's largest value

    @property
    def format(self) -> Format:
        return parse_format(self.floats) if self.floats else integer(self.bits, self.group, self.symmetric)

    @property
    def name(self) -> str:
        inputs = "A8" if self.coded else str(self.dtype).removeprefix("torch.")
        shape = f"{self.tokens}x{self.rows}x{self.columns}"
        side = "left" if self.left else "right"
        shared = f" by {self.programs}" if self.programs > 1 else ""
        return (
            f"{self.format.name} {inputs}{' scaled' if self.scaled else ''} {self.epilogue.name}"
            f"{' bias' if self.biased else ''} {shape} {side}{shared}"
        )


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
    Case(5, epilogue=EPILOGUES[0], biased=True, columns=331, group=CHANNEL, programs=2),
    Case(4, coded=True, epilogue=EPILOGUES[1], symmetric=False, columns=960, programs=4),
    Case(8, coded=True, symmetric=False, group=CHANNEL, columns=1000, left=True, programs=4),
    Case(3, columns=320, programs=4),  # one of them has no columns
    Case(4, floats="nvfp4", epilogue=EPILOGUES[0], biased=True),
    Case(4, floats="nvfp4", left=True, tokens=40, programs=2),
    Case(4, floats="mxfp4", epilogue=EPILOGUES[2], left=True),
    Case(4, floats="mxfp4", dtype=torch.bfloat16),
    Case(6, floats="mxfp6", epilogue=EPILOGUES[1]),
    Case(8, floats="mxfp8", programs=2),
    Case(8, floats="fp8-tensor", columns=331),
    Case(8, floats="fp8-channel", epilogue=EPILOGUES[4], biased=True, left=True),
    Case(8, floats="fp8-block128"),
    Case(8, floats="fp8-block128", dtype=torch.bfloat16, tokens=1),
    Case(4, scaled=True, epilogue=EPILOGUES[0], biased=True),
    Case(3, scaled=True, epilogue=EPILOGUES[2], columns=960, programs=4, left=True),
]
MANY = Case(4, epilogue=Epilogue("silu", residual=True, output_scale=0.01), tokens=64, rows=1536, columns=128)
"""98,304 int8 outputs."""


def made(fmt: Format, rows: int, columns: int, draw: torch.Generator) -> QuantizedTensor:
    """Codes, zero points and scales of both signs, all random."""
    groups = fmt.groups(columns)
    if isinstance(fmt.codebook, Float):
        return made_of_floats(fmt, rows, columns, draw)
    low, high = fmt.code_range
    codes = torch.randint(low, high + 1, (rows, columns), generator=draw, dtype=torch.int8)
    zero = torch.randint(low, high + 1, (rows, groups), generator=draw, dtype=torch.int8)
    sign = 1 - 2 * torch.randint(0, 2, (rows, groups), generator=draw)
    scale = ((0.5 + torch.rand(rows, groups, generator=draw)) * sign / (high * columns**0.5)).half().float()
    return QuantizedTensor(fmt, codes, scale, None if fmt.symmetric else zero)


def made_of_floats(fmt: Format, rows: int, columns: int, draw: torch.Generator) -> QuantizedTensor:
    """Any codes, zeros of both signs among them, and scales of all orders of magnitude that a sum allows."""
    every = torch.arange(2**fmt.bits).to(torch.uint8)
    numbers = every if fmt.bits < 8 else every[every % 128 != 127]  # without NaN
    codes = numbers[torch.randint(len(numbers), (rows, columns), generator=draw)]
    groups, outer = fmt.groups(columns), None
    if fmt.scaling.dtype == "e8m0":
        scale = torch.randint(-9, 3, (rows, groups), generator=draw).float().exp2()
    elif fmt.scaling.outer is not None:
        scale, outer = torch.randint(1, 127, (rows, groups), generator=draw), torch.tensor(2.0**-8)
        scale = E4M3.decode(scale.to(torch.uint8)) * outer
    else:
        scale = ((0.5 + torch.rand(rows, groups, generator=draw)) / 448).half().float()
    by = fmt.scaling.granularity
    if isinstance(by, PerBlock):
        scale = scale[:: by.rows].repeat_interleave(by.rows, 0)[:rows]
    scale = scale[:1].expand(rows, 1).contiguous() if isinstance(by, PerTensor) else scale
    return QuantizedTensor(fmt, codes, scale, None, outer=outer)


_workspace = launch.workspace


def poisoned(*arguments: Any) -> tuple[Tensor, Tensor]:
    """The room for sums, with nothing usable left in it by others."""
    partial, arrived = _workspace(*arguments)
    return partial.fill_(torch.nan), arrived


def run(case: Case, place: Callable[[Tensor], Tensor], tile: Tile | None = None) -> dict[str, object]:
    """Launch, compare with the specification, look at what lies round the output.

    Args:
        place: makes the copy of an operand that the kernel gets; where it lies, the kernel runs.
        tile: None is one that the interpreter is fast with.
    """
    draw = torch.Generator().manual_seed(case.bits + 10 * case.coded)
    weight = made(case.format, case.rows, case.columns, draw)
    x = torch.randn(case.tokens, case.columns, generator=draw).to(case.dtype)
    x_scale = None
    if case.coded or case.scaled:
        x, x_scale = reference.quantize_tokens(x) if case.coded else reference.halve_tokens(3 * x)
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
    dtype, x = torch.int8 if expected.dtype == torch.int8 else torch.float32, place(x)
    padded = torch.full((case.tokens + 8, case.rows), CANARY, dtype=dtype, device=x.device)
    out = padded[4:-4]
    stored = at(planar(weight, DEPTH_OF_CODES if case.coded else DEPTH_OF_FLOATS), place)
    optional = [None if value is None else place(value) for value in (x_scale, bias, multiplier, residual)]
    tile = tile or Tile(64 if case.tokens > 16 else 16, 128, left=case.left, columns=64 << case.bits % 3)
    with mock.patch.object(launch, "workspace", poisoned):
        launch.launch(out, x, stored, case.epilogue, *optional, tile=tile, programs=case.programs)
    padded = padded.cpu()
    difference = (padded[4:-4].double() - expected.double()).abs()
    return {
        "name": case.name,
        "integer": out.dtype == torch.int8,
        "relative": float(difference.max() / before.abs().max()),
        "largest": float(difference.max()),
        "different": int((difference > 0).sum()),
        "of": out.numel(),
        "digest": hashlib.sha256(padded.numpy().tobytes()).hexdigest(),
        "counters": not any(counters.any() for counters in launch._ARRIVED.values()),
        "canaries": bool((padded[:4] == CANARY).all() and (padded[-4:] == CANARY).all()),
    }


@dataclass(frozen=True)
class Values:
    """Rows of a weight to be written: from `begin`, where a tile begins, to `rows` - `less`."""

    bits: int
    group: int = 64
    symmetric: bool = True
    rows: int = 150
    columns: int = 320
    begin: int = 0
    less: int = 0
    floats: str = ""

    @property
    def format(self) -> Format:
        return parse_format(self.floats) if self.floats else integer(self.bits, self.group, self.symmetric)

    @property
    def name(self) -> str:
        return f"{self.format.name} {self.begin}:{self.rows - self.less} of {self.rows}x{self.columns}"


VALUES = [
    *(Values(bits, (16, 32, 64, CHANNEL)[bits % 4], bits % 2 == 0) for bits in range(2, 9)),
    Values(4, CHANNEL, False, columns=331),
    Values(3, 96, False, columns=288, begin=ROWS),
    Values(7, CHANNEL, rows=400, columns=333, begin=ROWS, less=40),
    Values(8, 128, False, columns=1024, rows=1),
    *(Values(0, floats=name) for name in ("nvfp4", "mxfp4", "mxfp6", "mxfp8", "fp8-tensor", "fp8-block128")),
]


UNIT = 32.0
"""Values are written in multiples of 1 / 32."""


def run_values(case: Values, place: Callable[[Tensor], Tensor]) -> dict[str, object]:
    """Write values of a weight, compare with the specification, look at what lies round them."""
    weight = made(case.format, case.rows, case.columns, torch.Generator().manual_seed(case.bits))
    expected = (reference.dequantize(weight) * UNIT).half()[case.begin : case.rows - case.less]
    stored = at(planar(weight), place)
    padded = torch.full(
        (len(expected) + 2 * ROWS, case.columns), CANARY, dtype=torch.float16, device=stored.scale.device
    )
    launch.launch_values(padded[ROWS:-ROWS], stored, place(torch.tensor([UNIT])), case.begin)
    padded = padded.cpu()
    difference = (padded[ROWS:-ROWS].double() - expected.double()).abs()
    return {
        "name": case.name,
        "integer": False,
        "relative": float(difference.max() / expected.double().abs().max()),
        "counters": True,
        "canaries": bool((padded[:ROWS] == CANARY).all() and (padded[-ROWS:] == CANARY).all()),
    }


@dataclass(frozen=True)
class Tokens:
    """Tokens to be scaled or, where `codes` is None, normed; the third of them is zeros."""

    codes: bool | None
    tokens: int = 5
    columns: int = 320

    @property
    def name(self) -> str:
        return f"{'norm' if self.codes is None else 'codes' if self.codes else 'halves'} {self.tokens}x{self.columns}"


TOKENS = [
    *(Tokens(codes) for codes in (False, True, None)),
    *(Tokens(codes, 3, 4500) for codes in (False, True, None)),
    *(Tokens(codes, 4, 37) for codes in (False, True, None)),
]
EPS = 1e-5


def run_tokens(case: Tokens, place: Callable[[Tensor], Tensor]) -> dict[str, object]:
    """Scale or norm tokens of all sizes, compare with the reference, look at what lies round them."""
    draw = torch.Generator().manual_seed(case.columns)
    x = torch.randn(case.tokens, case.columns, generator=draw) * torch.logspace(-4, 6, case.tokens)[:, None]
    x[2] = 0
    weight, scale = torch.rand(case.columns, generator=draw), torch.zeros(0)
    if case.codes is None:
        expected, dtype = decoder_ops.rms_norm(x.double(), weight.double(), EPS), torch.float32
    else:
        expected, scale = (reference.quantize_tokens if case.codes else reference.halve_tokens)(x)
        dtype = expected.dtype
    placed = place(x)
    padded = torch.full((case.tokens + 2, case.columns), CANARY, dtype=dtype, device=placed.device)
    found = torch.empty(case.tokens, device=placed.device)
    if case.codes is None:
        launch.launch_norm(padded[1:-1], placed, place(weight), EPS)
    else:
        launch.launch_tokens(padded[1:-1], found, placed)
    padded = padded.cpu()
    difference = (padded[1:-1].double() - expected.double()).abs()
    return {
        "name": case.name,
        "integer": False,
        "relative": float((difference / expected.double().abs().amax(1, keepdim=True).clamp(min=1e-30)).max()),
        "counters": case.codes is None or bool(torch.equal(found.cpu(), scale)),
        "canaries": bool((padded[:1] == CANARY).all() and (padded[-1:] == CANARY).all()),
    }


def at(weight: PlanarWeight, place: Callable[[Tensor], Tensor]) -> PlanarWeight:
    """The weight where the kernel gets it, with scales of 16 bits."""
    return replace(
        weight,
        planes=tuple(place(plane) for plane in weight.planes),
        scale=place(weight.scale.half() if weight.scale.is_floating_point() else weight.scale),
        outer=None if weight.outer is None else place(weight.outer),
        zero_point=None if weight.zero_point is None else place(weight.zero_point),
    )


def wrong(result: dict[str, Any], rounding: float) -> str:
    """What is wrong with a result; empty where it is right.

    Args:
        rounding: of the largest product: what float32 sums may be off by. Operands and weights are exact.
    """
    if not result["canaries"]:
        return "something round the output was written"
    if not result["counters"]:
        return "counters are not as they were"
    if result["integer"]:
        far = result["largest"] > 1 or result["different"] > max(1, result["of"] // 10_000)
        return f"{result['different']} codes differ, by {result['largest']}" if far else ""
    return "" if result["relative"] <= rounding else f"off by {result['relative']:.1e}"
