"""`torch.ops.natprec.planar_linear`: schema, shape, the specification for devices without a kernel, Triton on CUDA.

Importing this needs neither triton nor a GPU; the CUDA implementation imports triton when it is first called.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from natprec.errors import InputError
from natprec.runtime.kernels import reference
from natprec.runtime.kernels.epilogue import Epilogue
from natprec.runtime.kernels.layout import DEPTH_OF_CODES, DEPTH_OF_FLOATS, PlanarWeight, unpack
from natprec.runtime.kernels.triton import dense, launcher, tokens

LIBRARY = torch.library.Library("natprec", "FRAGMENT")

SCHEMA = """planar_linear(Tensor x, Tensor[] planes, Tensor scale, Tensor? zero_point, Tensor? outer, str format,
    int rows, Tensor? x_scale=None, Tensor? bias=None, str activation="none", Tensor? multiplier=None,
    Tensor? residual=None, float? output_scale=None, ScalarType? dtype=None) -> Tensor"""


def depth_beside(x: Tensor) -> int:
    """The depth R of a weight that is multiplied with such activations."""
    return DEPTH_OF_CODES if x.dtype == torch.int8 else DEPTH_OF_FLOATS


def planar_linear(
    x: Tensor,
    weight: PlanarWeight,
    *,
    x_scale: Tensor | None = None,
    bias: Tensor | None = None,
    epilogue: Epilogue = Epilogue(),  # noqa: B008  a frozen value
    multiplier: Tensor | None = None,
    residual: Tensor | None = None,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """epilogue(x · weightᵀ) by the kernel of the device that `x` is on.

    Args:
        x: (tokens, columns), float16 or bfloat16 beside a weight of depth 16; int8 beside one of depth 32.
        weight: (rows, columns).
        x_scale: (tokens,), float32, what `x` is in units of: of codes always, of floats where they have such.
        bias: (rows,).
        multiplier: (tokens, rows), where the epilogue is gated.
        residual: (tokens, rows), where the epilogue has one.
        dtype: of a float output; None is that of x, or float16 where `x` holds codes.
    Returns:
        (tokens, rows), int8 where the epilogue quantizes.
    Raises:
        InputError: tensors that do not fit together, or that the epilogue does not name.
    """
    epilogue.check(multiplier, residual)
    if (x.dtype == torch.int8 and x_scale is None) or weight.depth != depth_beside(x):
        raise InputError(
            f"x is {x.dtype} {'without' if x_scale is None else 'with'} a scale, the weight of depth {weight.depth}; "
            f"int8 codes have a scale and depth {DEPTH_OF_CODES}, floats depth {DEPTH_OF_FLOATS}"
        )
    if x.ndim != 2 or x.shape[1] != weight.columns:
        raise InputError(f"x is {tuple(x.shape)}; it needs {weight.columns} columns")
    return torch.ops.natprec.planar_linear(
        x,
        list(weight.planes),
        weight.scale,
        weight.zero_point,
        weight.outer,
        weight.format.name,
        weight.rows,
        x_scale,
        bias,
        epilogue.activation,
        multiplier,
        residual,
        epilogue.output_scale,
        dtype,
    )


@dataclass(frozen=True)
class _Call:
    """The arguments of the schema, in its order."""

    x: Tensor
    planes: list[Tensor]
    scale: Tensor
    zero_point: Tensor | None
    outer: Tensor | None
    format: str
    rows: int
    x_scale: Tensor | None = None
    bias: Tensor | None = None
    activation: str = "none"
    multiplier: Tensor | None = None
    residual: Tensor | None = None
    output_scale: float | None = None
    dtype: torch.dtype | None = None

    @property
    def weight(self) -> PlanarWeight:
        return PlanarWeight.of_operands(
            self.planes, self.scale, self.zero_point, self.outer, self.format, self.rows, self.x.shape[1],
            depth=depth_beside(self.x),
        )  # fmt: skip

    @property
    def epilogue(self) -> Epilogue:
        return Epilogue(self.activation, self.multiplier is not None, self.residual is not None, self.output_scale)

    def output(self) -> Tensor:
        """Of the right shape and dtype, with nothing in it."""
        floats = self.dtype or (torch.float16 if self.x.dtype == torch.int8 else self.x.dtype)
        return self.x.new_empty(len(self.x), self.rows, dtype=floats if self.output_scale is None else torch.int8)


def _specification(*arguments: Any, **named: Any) -> Tensor:
    """What any implementation must compute, by `natprec.runtime.kernels.reference`."""
    call = _Call(*arguments, **named)
    value = reference.linear(
        call.x,
        unpack(call.weight),
        x_scale=call.x_scale,
        bias=call.bias,
        epilogue=call.epilogue,
        multiplier=call.multiplier,
        residual=call.residual,
    )
    return value.to(call.output().dtype)


def use_interpreter() -> None:
    """From now on the kernels serve CPU tensors too, in Triton's interpreter: its numbers without a GPU.

    Raises:
        InputError: TRITON_INTERPRET was not set when triton was imported.
    """
    import triton

    if not triton.knobs.runtime.interpret:
        raise InputError("Triton's interpreter is off; set TRITON_INTERPRET=1 before Python starts")
    LIBRARY.impl("planar_linear", _triton, "CPU")
    dense.LIBRARY.impl("planar_values", dense.launched, "CPU")
    tokens.LIBRARY.impl("scaled_tokens", tokens.launched, "CPU")
    tokens.LIBRARY.impl("rms_norm", tokens.normed, "CPU", allow_override=True)


def _triton(*arguments: Any, **named: Any) -> Tensor:
    """The Triton kernel."""
    call = _Call(*arguments, **named)
    out = call.output()
    with contextlib.nullcontext() if out.is_cpu else torch.cuda.device(out.device):
        launcher().launch(
            out,
            call.x.contiguous(),
            call.weight,
            call.epilogue,
            _contiguous(call.x_scale),
            _contiguous(call.bias),
            _contiguous(call.multiplier),
            _contiguous(call.residual),
        )
    return out


def _contiguous(value: Tensor | None) -> Tensor | None:
    return None if value is None else value.contiguous()


LIBRARY.define(SCHEMA)
LIBRARY.impl("planar_linear", _specification, "CompositeExplicitAutograd")
LIBRARY.impl("planar_linear", _triton, "CUDA")
torch.library.register_fake(
    "natprec::planar_linear", lambda *arguments, **named: _Call(*arguments, **named).output(), lib=LIBRARY
)
