"""Profiles: what is measured for an engine can be run by it, and weighs what is written."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from natprec.checkpoints import checkpoint_tensors
from natprec.errors import InputError
from natprec.formats import CHANNEL, Float, Format, engine_names, engine_profile, integer, parse_format
from natprec.formats.compressed_tensors import arguments
from natprec.formats.engines import GROUP_SIZES
from natprec.models.weight_sites import Site
from natprec.quantizers import quantize


@pytest.mark.parametrize("name", engine_names())
def test_measured_formats_run_and_are_unique(name: str) -> None:
    profile = engine_profile(name)
    assert profile.name == name
    formats = profile.measured(GROUP_SIZES)
    assert len(set(formats)) == len(formats)
    assert all(profile.runs("linear", fmt) for fmt in formats)
    assert [fmt.bits for fmt in formats] == sorted(fmt.bits for fmt in formats)


@pytest.mark.parametrize("name", engine_names())
def test_every_format_of_an_embedding_or_head_is_measured(name: str) -> None:
    profile = engine_profile(name)
    for role in ("embedding", "head"):
        for pattern in profile.formats.get(role, ()):
            assert set(pattern.at(GROUP_SIZES)) <= set(profile.measured(GROUP_SIZES))


@pytest.mark.parametrize("name", engine_names())
def test_a_float_format_is_no_integer_of_the_same_width(name: str) -> None:
    """Before, (bits, symmetric) was the format: float8 passed for int8 in four engines, a plan and a checkpoint."""
    profile, disguised = engine_profile(name), Format("int8-channel", Float(4, 3), integer(8, CHANNEL).scaling)
    for role in ("linear", "head", "embedding"):
        assert not profile.runs(role, disguised)
    assert arguments(disguised)["type"] == "float"
    assert disguised != parse_format(disguised.name)


def test_unknown_engine_suggests() -> None:
    with pytest.raises(InputError, match="unknown engine 'vlm'; did you mean 'vllm'"):
        engine_profile("vlm")


@pytest.mark.parametrize("uses", [("emb",), ("emb", "head")])
@pytest.mark.parametrize("engine", ["transformers", "natprec"])
def test_bytes_of_an_embedding_are_those_written(engine: str, uses: tuple[str, ...]) -> None:
    profile, fmt = engine_profile(engine), integer(8, 32)
    model = nn.ModuleDict({"emb": nn.Embedding(50, 64), "head": nn.Linear(64, 50, bias=False)})
    model["head"].weight = model["emb"].weight
    if uses == ("emb",):
        del model["head"]
    site = Site("emb", "weight", "embedding", (50, 64), uses, "emb", 0)
    value = quantize(model["emb"].weight.detach(), fmt, torch.bfloat16)
    stored = checkpoint_tensors(model, [site], {"emb": value}, profile, torch.bfloat16)
    written = sum(tensor.nbytes for name, tensor in stored.items() if not name.endswith("weight_shape"))
    assert profile.stored_bytes("embedding", fmt, 50, 64, len(uses)) == written
