"""What matrix products are computed in where a model is run for statistics: bfloat16 where the machine multiplies it.

A measurement is made of averages over thousands of tokens, in which the rounding of one product does not show: the
residual stream, norms, softmax and all sums stay in float32. What judges (the exact estimator, the verification)
never uses this.

Products of float32 are oneDNN's. Torch gives them to MKL, which on CPUs of other makers than Intel leaves half of each
vector unused: 1024 tokens through 576 × 1536, one core with AVX-512, 101 GFLOP/s; oneDNN 234 (LOG.md, 2026-11-28).
Beside products of bfloat16, attention that nothing goes back through is our own.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from natprec import native
from natprec.errors import unknown

MASKING = (torch.Tensor.masked_fill, torch.Tensor.masked_fill_, torch.masked_fill)

DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}
"""Of the operands of products that serve averages, by name."""


def multiplies_bfloat16(device: torch.device) -> bool:
    """Whether products of bfloat16 are faster there than those of float32: of CPUs, with AVX512-BF16 or AMX."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type != "cpu":
        return False
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


def arithmetic(name: str, device: torch.device) -> torch.dtype:
    """The dtype that a name stands for: 'auto' for the faster one.

    Raises:
        InputError: there is no such name.
    """
    if name == "auto":
        return torch.bfloat16 if multiplies_bfloat16(device) else torch.float32
    if name not in DTYPES:
        raise unknown("arithmetic", name, ("auto", *DTYPES))
    return DTYPES[name]


def products_in(dtype: torch.dtype, device: torch.device) -> contextlib.AbstractContextManager[object]:
    """Within the block matrix products of a float32 model take operands of this dtype; sums are float32."""
    if dtype == torch.float32:
        return _ByOneDnn() if _has_onednn(device) else contextlib.nullcontext()
    return _in_narrow(dtype, device)


def in_bfloat16(device: torch.device) -> bool:
    """Whether this runs within `products_in(torch.bfloat16)`."""
    return torch.is_autocast_enabled(device.type) and torch.get_autocast_dtype(device.type) == torch.bfloat16


@contextlib.contextmanager
def _in_narrow(dtype: torch.dtype, device: torch.device) -> Iterator[None]:
    own = dtype == torch.bfloat16 and device.type == "cpu" and native.on_bfloat16()
    with torch.autocast(device.type, dtype=dtype), _OwnAttention() if own else _Masks():
        yield


def product(left: Tensor, right: Tensor) -> Tensor:
    """(rows, columns) of left (rows, inner) and right (columns, inner), both float32."""
    return _linear(left, right) if _has_onednn(left.device) else left @ right.T


def _has_onednn(device: torch.device) -> bool:
    return device.type == "cpu" and torch.backends.mkldnn.is_available()


class _ByOneDnn(TorchFunctionMode):
    """Linears of float32, and the way back to their inputs."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is functional.linear and not kwargs and _plain(*args):
            x, *others = args  # what a function of its own returns must be no view, for models that change it in place
            return _Linear.apply(x.flatten(0, -2), *others).unflatten(0, x.shape[:-1])
        return func(*args, **(kwargs or {}))


class _Masks(TorchFunctionMode):
    """Scores of a narrow product take the least number of float32 as their own least one, as masks mean it."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func in MASKING and len(args) == 3 and isinstance(args[2], float) and args[0].is_floating_point():
            least = torch.finfo(args[0].dtype).min
            args = (*args[:2], max(args[2], least) if args[2] > -math.inf else args[2])
        return func(*args, **(kwargs or {}))


class _OwnAttention(_Masks):
    """And causal attention that nothing goes back through: in C, where it can, in a seventh of torch's time."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        given = kwargs or {}
        if func is functional.scaled_dot_product_attention and len(args) == 3 and _causal(**given) and _ends(*args):
            query, key, value = (each.float() for each in args)
            if native.attends(query, key, value):
                scaling = query.shape[-1] ** -0.5 if given.get("scale") is None else given["scale"]
                return native.attention(query, key, value, scaling).transpose(1, 2)
        return super().__torch_function__(func, types, args, given)


def _ends(*given: Tensor) -> bool:
    """Whether nothing goes back through what is computed from these."""
    return not torch.is_grad_enabled() or not any(each.requires_grad for each in given)


def _causal(attn_mask: Tensor | None = None, dropout_p: float = 0.0, is_causal: bool = False, **others: Any) -> bool:
    return is_causal and attn_mask is None and dropout_p == 0


def _plain(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> bool:
    """Whether it is a product of float32 whose weight stays as it is; oneDNN refuses empty ones."""
    given = (x, weight) if bias is None else (x, weight, bias)
    fits = all(each.is_cpu and each.dtype == torch.float32 and each.numel() for each in given)
    return fits and x.dim() > 1 and _ends(*given[1:])


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        context.weight = weight
        return _linear(x, weight, bias)

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        return _linear(gradients[0], context.weight.T), None, None


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    if not weight.T.is_contiguous():  # of a slice oneDNN would take a thousand times as long
        weight = weight.contiguous()
    return torch.ops.mkldnn._linear_pointwise(x.contiguous(), weight, bias, "none", [], "")
