"""What is said before measuring of formats that a GPU has and a model, or the user, does not take."""

from __future__ import annotations

from natprec.formats import engine_profile
from natprec.measurement.left_out import left_out
from natprec.measurement.subject import Subject
from tests.arrange import subject
from tests.conftest import tiny_model


def sentences(own: Subject, *gpu: str, **options: bool) -> str:
    """All of them."""
    profile = engine_profile("vllm", *gpu, **options)
    return " | ".join(left_out(own, profile, own.candidates(profile, 32)))


def test_nothing_is_said_without_a_gpu() -> None:
    assert sentences(subject()) == ""


def test_what_is_left_out_has_its_reason() -> None:
    own = subject()
    assert "--untested takes them" in sentences(own, "sm90")
    assert "--untested" not in sentences(own, "sm90", untested=True)


def test_rows_that_groups_and_blocks_do_not_divide_are_named() -> None:
    own = Subject.in_memory(tiny_model(hidden_size=96, intermediate_size=136, num_attention_heads=4), None, "small")
    said = sentences(own, "sm90", untested=True)
    assert "fp8-block128 (blocks of 128 x 128) 'model.layers.0.self_attn.q_proj' (96 x 96) and 13 more" in said
    assert "nvfp4 (groups of 16) 'model.layers.0.mlp.down_proj' (96 x 136) and 1 more" in said
    assert "fp8-channel" not in said, "a row is a row"


def test_an_embedding_that_stays_is_named() -> None:
    own = subject()
    kind, name = type(own.model), type(own.model).__name__
    kind.__name__ = "MixtralForCausalLM"
    try:
        said = sentences(own, "any", untested=True)
    finally:
        kind.__name__ = name
    assert "MixtralForCausalLM does not hand its quantization config to the embedding: that is written in 16" in said
