"""What a decoder computes between its products, for many tokens: norm, rotary embedding, gate, attention.

Registered as `ops` are: the eager reference is the specification, the C files need one pass over memory each.
Attention is causal, of whole sequences, in bfloat16 with float32 sums where the CPU multiplies that: nine heads of 64
and 512 tokens take 0.9 ms there, torch's own in float32 or bfloat16 7 (AMD EPYC with AVX512_BF16, one thread).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from natprec import native
from natprec.runtime.kernels import cpu
from natprec.runtime.kernels.ops import LIBRARY

FEW = 16
"""Tokens up to which attention stays in float32: it costs little, and a block compares with its plain forward."""


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """(tokens, columns) over the root of each token's mean square, times weight (columns,)."""
    return weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps))


def rotate_(states: Tensor, cos: Tensor, sin: Tensor, heads: int) -> None:
    """Turn the first `heads` heads of each token, in place.

    Args:
        states: (tokens, all heads · size), contiguous.
        cos: (positions, size); token t has position t % positions.
        sin: likewise.
    """
    size = cos.shape[1]
    turned = states.view(-1, len(cos), states.shape[1] // size, size)[:, :, :heads]
    low, high = turned.chunk(2, -1)
    turned.copy_(turned * cos.unsqueeze(1) + torch.cat([-high, low], -1) * sin.unsqueeze(1))


def gate(gate: Tensor, up: Tensor) -> Tensor:
    """silu(gate) · up, both (tokens, columns)."""
    return functional.silu(gate) * up


def attention(query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
    """Causal attention.

    Args:
        query: (batch, heads, time, size).
        key: (batch, key heads, time, size).
        value: likewise.
        scaling: of scores.
    Returns:
        (batch, time, heads, size).
    """
    y = functional.scaled_dot_product_attention(query, key, value, is_causal=True, scale=scaling, enable_gqa=True)
    return y.transpose(1, 2).contiguous()


def _rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    library = native.library()[0]
    if library is None or x.dtype != torch.float32 or weight.dtype != torch.float32:
        return rms_norm(x, weight, eps)
    x, weight = x.contiguous(), weight.contiguous()
    y = torch.empty_like(x)
    library.natprec_norm(
        x.data_ptr(), *x.shape, weight.data_ptr(), eps, y.data_ptr(), torch.get_num_threads()
    )  # fmt: skip
    return y


def _rotate_(states: Tensor, cos: Tensor, sin: Tensor, heads: int) -> None:
    library = native.library()[0]
    if library is None or {states.dtype, cos.dtype, sin.dtype} != {torch.float32}:
        return rotate_(states, cos, sin, heads)
    cos, sin = cos.contiguous(), sin.contiguous()
    library.natprec_rotate(
        states.data_ptr(), *states.shape, heads, cos.shape[1], cos.data_ptr(), sin.data_ptr(), len(cos),
        torch.get_num_threads(),
    )  # fmt: skip
    return None


def _gate(gate_: Tensor, up: Tensor) -> Tensor:
    library = native.library()[0]
    fits = gate_.stride() == up.stride() and gate_.stride(1) == 1 and gate_.dtype == up.dtype == torch.float32
    if library is None or not fits:
        return gate(gate_, up)
    y = gate_.new_empty(gate_.shape)
    library.natprec_gate(
        gate_.data_ptr(), up.data_ptr(), *gate_.shape, gate_.stride(0), y.data_ptr(), torch.get_num_threads()
    )  # fmt: skip
    return y


def _attention(query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
    many = query.shape[2] > FEW and cpu.fast_dtype() == torch.bfloat16
    if many and native.attends(query, key, value):
        return native.attention(query, key, value, scaling)
    return attention(query, key, value, scaling)


for _schema, _reference, _function in (
    ("rms_norm(Tensor x, Tensor weight, float eps) -> Tensor", rms_norm, _rms_norm),
    ("rotate_(Tensor(a!) states, Tensor cos, Tensor sin, int heads) -> ()", rotate_, _rotate_),
    ("gate(Tensor gate, Tensor up) -> Tensor", gate, _gate),
    ("attention(Tensor query, Tensor key, Tensor value, float scaling) -> Tensor", attention, _attention),
):
    _name = _schema.partition("(")[0]
    LIBRARY.define(_schema)
    LIBRARY.impl(_name, _reference, "CompositeExplicitAutograd")
    LIBRARY.impl(_name, _function, "CPU")
torch.library.register_fake("natprec::rms_norm", lambda x, *_: torch.empty_like(x), lib=LIBRARY)
torch.library.register_fake("natprec::rotate_", lambda *_: None, lib=LIBRARY)
torch.library.register_fake("natprec::gate", lambda x, _: x.new_empty(x.shape), lib=LIBRARY)
torch.library.register_fake(
    "natprec::attention", lambda q, *_: q.new_empty(q.shape[0], q.shape[2], q.shape[1], q.shape[3]), lib=LIBRARY
)
