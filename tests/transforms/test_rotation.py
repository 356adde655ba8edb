"""Rotations folded into a model: the same function, whatever is built so, and refused where it would not be.

Each way to leave a part of it out is tried here, and is found by the comparison that a rotated model has to pass.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from natprec.errors import InputError
from natprec.measurement.subject import Subject
from natprec.transforms import rotation as module
from natprec.transforms.hadamard import Rotation
from natprec.transforms.rotation import LIMIT, find_heads, rotate, turn_heads
from natprec.transforms.stream import Stream, find_stream, turn_stream
from tests.arrange import encoder, experts, subject, tokens

TEXT = tokens(2, 16)
UNTIED: dict[str, Any] = {"tie_word_embeddings": False}
BIASES: dict[str, Any] = {**UNTIED, "attention_bias": True, "mlp_bias": True}


def uneven(made: Subject) -> Subject:
    """With norms and biases as trained models have them: not all alike."""
    draw = torch.Generator().manual_seed(5)
    for name, parameter in made.model.named_parameters():
        if "norm" in name or name.endswith("bias"):
            parameter.data = parameter.data + 0.3 * torch.randn(parameter.shape, generator=draw)
    return made


def llama(**changes: Any) -> Subject:
    return uneven(subject(**changes))


def family(name: str, **changes: Any) -> Subject:
    """A small random model of another class of transformers; one whose experts are chosen needs no care here."""
    made = experts(name, std=0.2, **{"tie_word_embeddings": False, **changes})
    return uneven(Subject.in_memory(made, None, name))


MODELS: dict[str, Callable[[], Subject]] = {
    "grouped heads": lambda: llama(**UNTIED),
    "biases": lambda: llama(**BIASES),
    "as many heads of values": lambda: llama(**UNTIED, num_key_value_heads=4),
    "no power of two": lambda: llama(**UNTIED, hidden_size=48, num_attention_heads=4),
    "qwen2": lambda: family("Qwen2"),
    "qwen3": lambda: family("Qwen3"),
}


def stream_of(made: Subject) -> Stream:
    return find_stream(made.segmented, made.sites, made.gauges, TEXT)


def relative(after: Tensor, before: Tensor) -> float:
    return float((after - before).abs().max() / before.abs().max())


@pytest.mark.parametrize("name", MODELS)
def test_the_error_is_that_of_arithmetic(name: str) -> None:
    """It shrinks when the dtype gets wider."""
    found = {}
    for dtype in (torch.bfloat16, torch.float32, torch.float64):
        made = MODELS[name]()
        heads, stream = find_heads(made.segmented, made.sites, made.gauges, TEXT), stream_of(made)
        made.model.to(dtype)
        before = made.segmented.output(TEXT)
        turn_heads(made.model, made.sites, made.gauges, heads, seed=1)
        turn_stream(made.model, stream, seed=1)
        found[dtype] = relative(made.segmented.output(TEXT), before)
    assert found[torch.float32] < 1e-2 * found[torch.bfloat16]
    assert found[torch.float32] < 1e-5
    if name not in ("qwen2", "qwen3"):  # transformers computes their norms in float32 whatever the dtype
        assert found[torch.float64] < found[torch.float32]


@pytest.mark.parametrize("groups", [2, 4])
def test_heads_are_found_and_products_of_layers_are_not(groups: int) -> None:
    """Where keys and values have as many heads as queries nothing in the shapes tells where a head ends."""
    made = llama(num_key_value_heads=groups)
    heads = find_heads(made.segmented, made.sites, made.gauges, TEXT)
    assert heads == {f"model.layers.{index}.self_attn.o_proj": 8 for index in range(2)}


def test_what_a_stream_consists_of() -> None:
    made = llama(**BIASES)
    stream = stream_of(made)
    assert (stream.size, stream.embeddings) == (32, ("model.embed_tokens",))
    assert stream.folded["model.norm"] == ("lm_head",)
    assert stream.folded["model.layers.1.post_attention_layernorm"] == tuple(
        f"model.layers.1.mlp.{name}_proj" for name in ("gate", "up")
    )
    assert len(stream.readers) == 2 * 5 + 1
    assert {name.rpartition(".")[2] for name in stream.writers} == {"o_proj", "down_proj"}


def left_out(made: Subject, stream: Stream, seed: int) -> None:
    """One reader's columns stay."""
    kept = made.model.get_submodule("model.layers.1.mlp.up_proj").weight
    weight = kept.data
    turn_stream(made.model, stream, seed)
    kept.data = weight


def not_written(made: Subject, stream: Stream, seed: int) -> None:
    turn_stream(made.model, replace(stream, writers=stream.writers[1:]), seed)


def bias_left(made: Subject, stream: Stream, seed: int) -> None:
    bias = made.model.get_submodule("model.layers.0.mlp.down_proj").bias
    value = bias.data
    turn_stream(made.model, stream, seed)
    bias.data = value


def norm_kept(made: Subject, stream: Stream, seed: int) -> None:
    """A weight goes into the Linears, and stays in the norm."""
    weight = made.model.get_submodule("model.layers.0.input_layernorm").weight
    value = weight.data
    turn_stream(made.model, stream, seed)
    weight.data = value


def norm_dropped(made: Subject, stream: Stream, seed: int) -> None:
    """A weight is set to one, and goes nowhere."""
    made.model.get_submodule("model.norm").weight.data = torch.ones(32)
    turn_stream(made.model, stream, seed)


def head_left(made: Subject, stream: Stream, seed: int) -> None:
    head = made.model.lm_head.weight
    value = head.data
    turn_stream(made.model, stream, seed)
    head.data = value


def transposed(made: Subject, stream: Stream, seed: int) -> None:
    """What writes turns the other way."""
    turn_stream(made.model, replace(stream, writers=()), seed)
    matrix = Rotation(stream.size, seed).matrix().float()
    for name in stream.writers:
        layer = made.model.get_submodule(name)
        layer.weight.data = matrix @ layer.weight.data
        layer.bias.data = layer.bias.data @ matrix.T


MISTAKES = (left_out, not_written, bias_left, norm_kept, norm_dropped, head_left, transposed)


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_found_and_undone(mistake: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    made = llama(**BIASES)
    before = made.segmented.output(TEXT)
    monkeypatch.setattr(module, "turn_stream", lambda model, stream, seed: mistake(made, stream, seed))
    kept = {name: parameter.data_ptr() for name, parameter in made.model.named_parameters()}
    monkeypatch.setattr(module, "find_heads", lambda *of: {})
    with pytest.raises(InputError, match=rf"changes by .* \(limit {LIMIT:g}\)"):
        rotate(made.segmented, made.sites, made.gauges, TEXT, seed=0)
    assert kept == {name: parameter.data_ptr() for name, parameter in made.model.named_parameters()}
    assert torch.equal(made.segmented.output(TEXT), before)


def test_heads_turned_wrongly_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    made = llama(num_key_value_heads=4)
    fused_group = "model.layers.0.self_attn.o_proj"
    for wrong in ({fused_group: 16}, {"model.layers.0.mlp.down_proj": 8}):
        monkeypatch.setattr(module, "find_heads", lambda *of, wrong=wrong: wrong)
        with pytest.raises(InputError, match="changes by"):
            rotate(made.segmented, made.sites, made.gauges, TEXT, seed=0)


def test_a_large_channel_is_spread() -> None:
    made = llama(**UNTIED)
    gate = made.model.get_submodule("model.layers.0.mlp.gate_proj")
    gate.weight.data[:, 3] *= 30

    def peak() -> float:
        return float(gate.weight.abs().max() / gate.weight.square().mean().sqrt())

    before = peak()
    made.rotated(seed=0)
    assert peak() < 0.5 * before


def test_a_tied_model_turns_its_heads_alone() -> None:
    made, lines = llama(), []
    turned = made.rotated(0, lines.append)
    assert lines[0].startswith("rotated the heads of values, parts of 8, at 2 places; output changes by ")
    assert lines[1].startswith(
        "did not rotate the residual stream: embedding and head are one tensor, and norm 'model.norm'"
    )
    assert lines[1].endswith("use --transforms auto, or give an untied copy")
    assert (turned.rotation, turned.digest != made.digest) == (0, True)
    with pytest.raises(InputError, match="one tensor"):
        stream_of(made)


def test_a_tied_model_whose_last_norm_is_even_turns_whole() -> None:
    made = llama()
    made.model.model.norm.weight.data = torch.full((32,), 1.5)
    assert [line.split(";")[0] for line in rotate(made.segmented, made.sites, made.gauges, TEXT, 0)] == [
        "rotated the heads of values, parts of 8, at 2 places",
        "rotated the residual stream of 32",
    ]


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("Starcoder2", "no RMSNorm"),
        ("Mixtral", "a router"),
        ("Gemma", "no plain factor"),
        ("Olmo2", "the stream itself"),
    ],
)
def test_other_norms_are_refused(name: str, reason: str) -> None:
    made = family(name)
    with pytest.raises(InputError, match=reason):
        stream_of(made)


def test_an_encoder_turns_its_heads_alone() -> None:
    made, lines = encoder(), []
    before = made.segmented.output(TEXT)
    made.rotated(0, lines.append)
    assert lines[1].startswith("did not rotate the residual stream: BertModel is no decoder")
    assert 0 < relative(made.segmented.output(TEXT), before) < 1e-5


@torch.no_grad()
def test_plain_transformers_loads_it(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    made = llama(**BIASES)
    before = made.model(TEXT.ids).logits
    made.rotated(seed=0)
    made.model.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    assert all((norm.weight == 1).all() for name, norm in loaded.named_modules() if name.endswith("norm"))
    assert isinstance(loaded.lm_head, nn.Linear)
    assert torch.equal(loaded(TEXT.ids).logits, made.model(TEXT.ids).logits)
    assert relative(loaded(TEXT.ids).logits, before) < 1e-5


def test_seeds_give_different_weights_and_names() -> None:
    one, other = (llama(**UNTIED).rotated(seed) for seed in (0, 1))
    assert one.digest != other.digest
    assert not torch.equal(one.model.lm_head.weight, other.model.lm_head.weight)
