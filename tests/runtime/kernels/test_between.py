"""Norm, rotary embedding, gate and attention in C against their specification, in each variant of the C files."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from natprec import native
from natprec.runtime.kernels import decoder_ops as between
from natprec.runtime.kernels.cpu import fast_dtype
from tests.runtime.kernels.test_cpu import drawn, variant  # noqa: F401  (a fixture)

OPS = torch.ops.natprec


def close(found: Tensor, expected: Tensor) -> bool:
    """As far as float32 tells; `expected` in float64."""
    return bool(((found - expected).abs() <= 1e-6 + 2e-6 * expected.abs()).all())


@pytest.mark.usefixtures("variant")
@pytest.mark.parametrize("columns", [1, 7, 64, 100])
def test_norm(columns: int) -> None:
    x = drawn(5, columns) * torch.tensor([[1e-4], [1.0], [3.0], [1e4], [0.0]])
    weight = drawn(columns, seed=1)
    for eps in (1e-6, 1e-2):
        expected = between.rms_norm(x.double(), weight.double(), eps)
        assert close(OPS.rms_norm(x, weight, eps), expected)
        assert not close(OPS.rms_norm(x, weight, 1.5 * eps), expected)


@pytest.mark.usefixtures("variant")
@pytest.mark.parametrize("size", [2, 10, 64])
def test_rotary_embedding(size: int) -> None:
    """Two sequences of three tokens, two of four heads; angles of the halves differ, though models' do not."""
    states, angle = drawn(6, 4 * size), drawn(3, size, seed=1)
    expected, found, other = states.double(), states.clone(), states.clone()
    between.rotate_(expected, angle.double().cos(), angle.double().sin(), 2)
    OPS.rotate_(found, angle.cos(), angle.sin(), 2)
    OPS.rotate_(other, angle.cos(), -angle.sin(), 2)
    assert close(found, expected)
    assert torch.equal(found[:, 2 * size :], states[:, 2 * size :])
    assert not close(other, expected)


@pytest.mark.usefixtures("variant")
def test_gate() -> None:
    """Also where exponentials end: beyond ±87 the sigmoid is 0 or 1 in float32."""
    both = torch.cat([torch.linspace(-200, 200, 333), drawn(333)]).view(2, 333).T.repeat(1, 33).contiguous()
    for pair in (both.chunk(2, 1), (both[:, :33].contiguous(), both[:, 33:].contiguous())):
        expected = between.gate(*(x.double() for x in pair))
        assert close(OPS.gate(*pair), expected)


@pytest.mark.usefixtures("variant")
@pytest.mark.parametrize(
    ("time", "heads", "keys", "size"), [(17, 4, 2, 16), (70, 6, 2, 64), (131, 2, 2, 80), (64, 3, 1, 128)]
)
def test_attention(time: int, heads: int, keys: int, size: int) -> None:
    """Errors are at most what q, k, v and shares lose in bfloat16; keys from a cache are views with room behind."""
    states = drawn(2, time, heads + 2 * keys, size) * 1.5
    query, key, value = (part.transpose(1, 2) for part in states.split([heads, keys, keys], 2))
    room = torch.empty(2, keys, time + 9, size)
    room[:, :, :time] = key
    exact = between.attention(query.double(), key.double(), value.double(), size**-0.5)
    repeated = [x.bfloat16().repeat_interleave(heads // keys, 1) for x in (key, value)]
    rounded = functional.scaled_dot_product_attention(query.bfloat16(), *repeated, is_causal=True, scale=size**-0.5)
    usual = (rounded.transpose(1, 2) - exact).square().mean().sqrt()
    for other in (key, room[:, :, :time]):
        found = OPS.attention(query, other, value, size**-0.5)
        assert (found - exact).square().mean().sqrt() < 1.1 * usual, "torch's own in bfloat16 is no better"
        assert (
            found[:, 0] - value.repeat_interleave(heads // keys, 1)[:, :, 0]
        ).abs().max() < 2**-8 * value.abs().max()
    later = value.clone()
    later[:, :, -1] += 100
    changed = OPS.attention(query, key, later, size**-0.5)
    assert torch.equal(changed[:, :-1], found[:, :-1]), "tokens see nothing of later ones"
    assert not torch.equal(changed[:, -1], found[:, -1])


def test_attention_of_few_tokens_and_of_very_many_is_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    query, key, value = (drawn(1, 2, between.FEW, 16, seed=seed) for seed in range(3))
    exact = between.attention(query.double(), key.double(), value.double(), 0.25)
    assert close(OPS.attention(query, key, value, 0.25), exact)
    many = drawn(3, 1, 2, between.FEW + 1, 16).unbind()
    exact = between.attention(*(x.double() for x in many), 0.25)
    native_bfloat16 = fast_dtype() == torch.bfloat16 and hasattr(native.library()[0], "natprec_attention")
    assert close(OPS.attention(*many, 0.25), exact) != native_bfloat16
    monkeypatch.setattr(native, "LONGEST", between.FEW)
    assert close(OPS.attention(*many, 0.25), exact)


@pytest.mark.parametrize(
    ("operation", "arguments"),
    [
        (OPS.rms_norm.default, (drawn(3, 8), drawn(8), 1e-6)),
        (OPS.rotate_.default, (drawn(6, 16), drawn(3, 4), drawn(3, 4), 3)),
        (OPS.gate.default, (drawn(3, 8), drawn(3, 8))),
        (OPS.attention.default, (drawn(1, 4, 5, 16), drawn(1, 2, 5, 16), drawn(1, 2, 5, 16), 0.25)),
    ],
    ids=lambda value: str(value) if callable(value) else "",
)
def test_they_are_registered_as_torch_wants_it(operation: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    torch.library.opcheck(operation, arguments, test_utils=("test_schema", "test_faketensor"))
