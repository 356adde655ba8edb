"""The epilogue inside the kernel: `runtime.kernels.epilogue.Epilogue.apply`, in float32 registers, one store."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def finish(
    value,
    rm,
    rn,
    M,
    N,
    bias,
    multiplier,
    residual,
    out,
    inverse_output_scale,
    ACTIVATION: tl.constexpr,
):
    """Bias, activation, gated product, residual, one rounding, one store.

    Args:
        value: (BM, BN), the scaled sums, float32.
        rm, rn: the tokens and rows that they belong to; those from M and N on are not stored.
        inverse_output_scale: 1 / output scale, or None: floats of the dtype of `out`.
    """
    inside = (rm < M)[:, None] & (rn < N)[None, :]
    at = rm.to(tl.int64)[:, None] * N + rn[None, :]
    if bias is not None:
        value += tl.load(bias + rn, mask=rn < N, other=0).to(tl.float32)[None, :]
    value = activate(value, ACTIVATION)
    if multiplier is not None:
        value *= tl.load(multiplier + at, mask=inside, other=0).to(tl.float32)
    if residual is not None:
        value += tl.load(residual + at, mask=inside, other=0).to(tl.float32)
    if inverse_output_scale is not None:
        value = rounded(value * inverse_output_scale)
    tl.store(out + at, value.to(out.dtype.element_ty), mask=inside)


@triton.jit
def activate(value, NAME: tl.constexpr):
    """The activation with this name (`ACTIVATIONS`)."""
    if NAME == "relu":
        value = tl.maximum(value, 0.0)
    elif NAME == "silu":
        value *= tl.sigmoid(value)
    elif NAME == "gelu":
        value *= 0.5 + 0.5 * tl.erf(value * 0.7071067811865476)
    elif NAME == "gelu_tanh":  # (1 + tanh u) / 2 = sigmoid(2 u)
        value *= tl.sigmoid(value * (1.5957691216057308 + 0.07135481627260025 * value * value))
    return value


@triton.jit
def rounded(value):
    """Nearest whole number of -128 … 127, half to even: adding 1.5 · 2**23 leaves no bits below 1."""
    return tl.clamp(value, -128.0, 127.0) + 12582912.0 - 12582912.0
