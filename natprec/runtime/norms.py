"""Norms by the root mean square as one operation instead of six, found in any model by trying what they compute."""

from __future__ import annotations

import functools
import inspect

import torch
from torch import Tensor, nn

from natprec.runtime.kernels import decoder_ops as between
from natprec.runtime.kernels.block import Norm


def replace_norms(model: nn.Module) -> int:
    """Every norm of a model that is one; its forward is replaced, not the module. Returns how many."""
    replaced = 0
    for module in model.modules():
        norm = read_norm(module)
        if norm is not None:
            module.forward = functools.partial(_forward, functools.partial(type(module).forward, module), norm)
            replaced += 1
    return replaced


def read_norm(module: nn.Module) -> Norm | None:
    """A norm's weight, in float32 (some models store it less one), and its eps; None if it is no such norm.

    One that can be given more than what it norms (a gate) is none, whatever it makes of that alone.
    """
    eps = next((getattr(module, name) for name in ("variance_epsilon", "eps") if hasattr(module, name)), None)
    weight = getattr(module, "weight", None)
    if (
        not isinstance(eps, float)
        or not isinstance(weight, Tensor)
        or weight.dim() != 1
        or next(module.children(), None)
        or isinstance(module, nn.modules.batchnorm._BatchNorm)  # which takes channels and places
        or len(inspect.signature(module.forward).parameters) != 1
    ):
        return None
    x = torch.randn(4, len(weight), generator=torch.Generator().manual_seed(0))
    x *= torch.tensor([[1.0], [100.0], [eps**0.5], [1e-6]])
    x = x.to(weight.device)
    expected = module(x)
    for whole in (weight.detach().float(), weight.detach().float() + 1):
        if alike(between.rms_norm(x, whole, eps), expected):
            return Norm(whole.contiguous(), eps)
    return None


def alike(found: Tensor, expected: object) -> bool:
    """As far as float32 tells."""
    if not isinstance(expected, Tensor) or found.shape != expected.shape:
        return False
    return bool(((found - expected).abs() <= 1e-6 + 1e-5 * expected.abs()).all())


def _forward(plain: functools.partial[Tensor], norm: Norm, hidden_states: Tensor) -> Tensor:
    """(…, columns) to the same."""
    x = hidden_states
    if x.dtype != torch.float32 or x.device != norm.weight.device or x.requires_grad or torch.compiler.is_compiling():
        return plain(x)
    y: Tensor = torch.ops.natprec.rms_norm(x.reshape(-1, x.shape[-1]), norm.weight, norm.eps)
    return y.view(x.shape)
