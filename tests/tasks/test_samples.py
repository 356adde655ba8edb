"""Samples are the same however they are cut, moved or packed."""

from __future__ import annotations

import hashlib

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from natprec.tasks import Samples
from natprec.tasks.samples import BATCH_TOKENS
from tests.arrange import tokens


def several(count: int = 5) -> Samples:
    """Pixels and a mask, as a model of images is given."""
    draw = torch.Generator().manual_seed(0)
    pixels = torch.randn(count, 3, 4, 4, generator=draw)
    return Samples({"pixel_values": pixels, "bool_masked_pos": pixels[:, 0, 0] > 0}, length=16)


def same(one: Samples, other: Samples) -> bool:
    return one.length == other.length and all(
        torch.equal(tensor, other.tensors[name]) for name, tensor in one.tensors.items()
    )


@given(count=st.integers(1, 40), length=st.integers(1, 2000), size=st.none() | st.integers(1, 50))
def test_batches_cover_all_samples_in_order(count: int, length: int, size: int | None) -> None:
    samples = Samples.text(torch.arange(count).unsqueeze(1).expand(count, length))
    batches = samples.split(size)
    assert torch.equal(torch.cat([batch.ids for batch in batches]), samples.ids)
    largest = max(len(batch) for batch in batches)
    assert largest <= (size or max(1, BATCH_TOKENS // length))
    assert all(len(batch) == largest for batch in batches[:-1])


def test_the_digest_of_a_text_is_of_its_shape_and_tokens_alone() -> None:
    """As in measurements that earlier versions wrote."""
    ids = tokens(4, 16).ids
    expected = hashlib.sha256(b"(4, 16);" + ids.numpy().astype("<i8").tobytes()).hexdigest()[:16]
    assert Samples.text(ids).digest == Samples.text(ids.to(torch.int32)).digest == expected
    for other in (ids.flip(0), ids.reshape(8, 8), ids[:3]):
        assert Samples.text(other).digest != expected


def changed(samples: Samples, name: str, tensor: Tensor) -> Samples:
    return Samples({**samples.tensors, name: tensor}, samples.length)


def test_the_digest_of_other_samples_is_of_every_name_shape_type_and_value() -> None:
    samples = several()
    pixels, mask = samples.tensors.values()
    others = [
        changed(samples, "pixel_values", pixels + 1e-3),
        changed(samples, "pixel_values", pixels.double()),
        changed(samples, "pixel_values", pixels.reshape(5, 4, 3, 4)),
        changed(samples, "bool_masked_pos", ~mask),
        Samples({"pixels": pixels, "bool_masked_pos": mask}, 16),
        Samples({"pixel_values": pixels}, 16),
    ]
    assert len({samples.digest, *(other.digest for other in others)}) == 1 + len(others)
    assert Samples(dict(reversed(list(samples.tensors.items()))), 16).digest == samples.digest


@pytest.mark.parametrize("samples", [tokens(3, 8), several()], ids=["text", "pixels"])
def test_packed_and_unpacked_they_are_the_same(samples: Samples) -> None:
    assert same(Samples.unpacked(samples.packed()), samples)
    assert same(samples[:1].followed_by(samples[1:]), samples)
    chosen = torch.arange(len(samples)) % 2 == 0
    assert len(samples[chosen]) + len(samples[~chosen]) == len(samples)
    assert samples.tokens == samples.shape.numel() == len(samples) * samples.length
