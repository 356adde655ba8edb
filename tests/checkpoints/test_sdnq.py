"""The format that diffusers loads with the package sdnq."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from natprec.checkpoints.sdnq import LAYOUT, group_of, pack, sdnq_tensors, unpack
from natprec.errors import ModelError
from natprec.formats import engine_profile, parse_format
from natprec.models.layers import known_layer
from natprec.quantizers import QuantizedTensor

PACKED = {
    2: "93939393",
    3: "53b8a553b8a5",
    4: "832dc7610ba54fe9",
    5: "8328cd72178b30d51abf",
    6: "43088d975ca1ebb0b53fc489",
    7: "03880d12979c21ab3035babfc449",
}
"""Width → what sdnq 0.2.8 makes of the codes (5 n + 3) mod 2^width, n = 0 to 15."""


@pytest.mark.parametrize("bits", LAYOUT)
def test_codes_come_back(bits: int) -> None:
    codes = torch.randint(2**bits, (64,), generator=torch.Generator().manual_seed(bits)).to(torch.uint8)
    packed = pack(codes, bits)
    assert packed.numel() * 8 == 64 * bits
    assert torch.equal(unpack(packed, bits), codes)


@pytest.mark.parametrize("bits", LAYOUT)
def test_every_bit_of_a_code_has_one_place(bits: int) -> None:
    places = [(code, first + bit) for runs in LAYOUT[bits] for code, first, count in runs for bit in range(count)]
    assert sorted(places) == [(code, bit) for code in range(group_of(bits)) for bit in range(bits)]
    assert all(sum(count for *_, count in runs) == 8 for runs in LAYOUT[bits])


@pytest.mark.parametrize("bits", LAYOUT)
def test_bytes_are_those_of_sdnq(bits: int) -> None:
    codes = ((torch.arange(16) * 5 + 3) % 2**bits).to(torch.uint8)
    assert bytes(pack(codes, bits).flatten().tolist()).hex() == PACKED[bits]


LAYERS = {
    "linear": nn.Linear(32, 8, bias=False),
    "convolution": nn.Conv2d(4, 8, 3, bias=False),
    "grouped": nn.Conv2d(8, 8, 3, groups=2, bias=False),
    "transposed": nn.ConvTranspose2d(4, 8, 3, bias=False),
    "embedding": nn.Embedding(16, 32),
}


@pytest.mark.parametrize(
    "name", ["int3-g16", "int4-g16-asym", "int8-channel", "int8-channel-asym", "int5-channel-asym"]
)
@pytest.mark.parametrize("kind", LAYERS)
def test_a_weight_is_its_codes_times_scales_plus_zero_points(kind: str, name: str) -> None:
    """As the format says, and with what the profile says that it takes on disk."""
    layer, fmt = known_layer(LAYERS[kind]), parse_format(name)
    if layer.kind.dimensions and fmt.group_size:
        assert not engine_profile("diffusers").fits("convolution", fmt, *layer.shape)
        return
    (rows, columns), draw = layer.shape, torch.Generator().manual_seed(0)
    low, high = fmt.code_range
    codes = torch.randint(low, high + 1, (rows, columns), generator=draw).to(torch.int8)
    scale = torch.rand(rows, fmt.groups(columns), generator=draw).bfloat16().float() + 0.5
    zero = None if fmt.symmetric else torch.randint(low, high + 1, scale.shape, generator=draw).to(torch.int8)
    value = QuantizedTensor(fmt, codes, scale.bfloat16().float(), zero)
    tensors = sdnq_tensors(layer, "a", value, torch.bfloat16)
    role = "convolution" if layer.kind.dimensions else "linear"
    assert engine_profile("diffusers").fits(role, fmt, rows, columns)
    assert sum(each.numel() * each.itemsize for each in tensors.values()) == engine_profile("diffusers").stored_bytes(
        role, fmt, rows, columns
    )
    shape = layer.weight.shape if fmt.group_size is None else (rows, columns // fmt.group_size, fmt.group_size)
    stored = tensors["a.weight"]
    found = (stored if fmt.bits == 8 else unpack(stored, fmt.bits)).float().reshape(shape)
    if fmt.symmetric and fmt.bits < 8:
        found = found - 2 ** (fmt.bits - 1)
    found = found * tensors["a.scale"].float() + tensors.get("a.zero_point", torch.zeros(()))
    expected = layer.kind.stored(value.dequantize(), layer.weight.shape, layer.groups)
    assert torch.allclose(found.reshape(expected.shape), expected, atol=1e-4)


def test_scales_that_do_not_broadcast_are_refused() -> None:
    layer = known_layer(nn.ConvTranspose2d(8, 8, 3, groups=2))
    value = QuantizedTensor(parse_format("int8-channel"), torch.zeros(8, 36).to(torch.int8), torch.ones(8, 1), None)
    with pytest.raises(ModelError, match=r"'a' is a transposed convolution in groups"):
        sdnq_tensors(layer, "a", value, torch.bfloat16)
