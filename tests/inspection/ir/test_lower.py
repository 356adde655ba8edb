from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from natprec.errors import InputError
from natprec.formats import Format, integer
from natprec.inspection.ir import Capture, capture, find_fused_operations
from natprec.inspection.ir.graph import weight_of
from natprec.inspection.ir.lower import Lowered, lower
from natprec.inspection.ir.operators import operands, operator
from natprec.quantizers import QuantizedTensor, quantize
from tests.conftest import tiny_encoder, tiny_model

IDS = torch.arange(24)[None]


def quantized(graph: Capture, fmt: Format | None = None, inside: tuple[str, ...] = ("",)) -> dict[str, QuantizedTensor]:
    """All Linear weights of a graph, or those whose names hold one of some words, in one format."""
    fmt = fmt or integer(4, 32, False)
    every = [weight_of(node) for node in graph.nodes if operator(node) == "linear"]
    names = [name for name in every if any(word in str(name) for word in inside)]
    return {
        name: quantize(graph.model.get_submodule(name).weight, fmt, torch.float32) for name in names if name is not None
    }  # type: ignore[arg-type]


def steps(graph: Capture, inputs: Mapping[str, Any], only: str = "") -> dict[str, float]:
    """Fused operation → step of int8 codes that span what it reads."""
    operations = find_fused_operations(graph)
    reads = {
        operands(node)[0]: operations[node]
        for node in graph.nodes
        if operator(node) == "linear" and only in operations[node]
    }
    found: dict[str, float] = {}
    graph.run(
        inputs, set(reads), lambda node, value: found.update({reads[node]: float(value.detach().abs().max()) / 127})
    )
    return found


def assert_equal(one: Lowered, other: Lowered, inputs: Mapping[str, Any]) -> None:
    """Codes identical, floats to the rounding of float64."""
    (outputs, codes), (expected, plain) = one.run(inputs), other.run(inputs)
    assert codes.keys() == plain.keys()
    for operation, values in codes.items():
        assert values.dtype == torch.int8
        assert torch.equal(values, plain[operation]), operation
    for own, theirs in zip(outputs, expected, strict=True):
        torch.testing.assert_close(own, theirs, rtol=1e-10, atol=1e-10)


def test_a_gated_mlp_becomes_three_calls() -> None:
    graph = capture(tiny_model(), {"input_ids": IDS, "use_cache": False})
    inputs = {"input_ids": IDS, "use_cache": False}
    weights, scales = quantized(graph), steps(graph, inputs)
    fused, plain = lower(graph, weights, scales), lower(graph, weights, scales, fuse=False)
    block = {name.rpartition(".")[2]: found for name, found in fused.epilogues.items() if "layers.0" in name}
    assert block == {
        "q_proj": "none", "k_proj": "none", "v_proj": "none", "o_proj": "residual",
        "gate_proj": "silu+gated+int8", "up_proj": "none", "down_proj": "residual",
    }  # fmt: skip
    assert set(plain.epilogues.values()) == {"none"}
    assert len(fused.run(inputs)[1]) == 9
    assert_equal(fused, plain, inputs)
    left = sum(operator(node) in ("silu", "mul") for node in fused.module.graph.nodes)
    assert left < sum(operator(node) in ("silu", "mul") for node in plain.module.graph.nodes)


def test_an_encoder_keeps_its_biases() -> None:
    model = tiny_encoder()
    with torch.no_grad():
        for name, bias in model.named_parameters():
            if name.endswith("dense.bias"):
                bias.add_(0.3)
    graph = capture(model, {"input_ids": IDS})
    weights, scales = quantized(graph), steps(graph, {"input_ids": IDS}, only="output.dense")
    fused = lower(graph, weights, scales)
    assert "gelu+int8" in fused.epilogues.values()
    assert "residual" in fused.epilogues.values()
    assert_equal(fused, lower(graph, weights, scales, fuse=False), {"input_ids": IDS})


def test_without_quantization_the_model_is_what_it_was() -> None:
    model = tiny_model()
    graph = capture(model, {"input_ids": IDS, "use_cache": False})
    logits = lower(graph, {}, {}).run({"input_ids": IDS, "use_cache": False})[0][0]
    with torch.no_grad():
        torch.testing.assert_close(logits.float(), model(input_ids=IDS).logits, rtol=1e-4, atol=1e-5)


class Shared(nn.Module):
    """The activated value has two readers, only one of which wants codes: it must not be stored as codes."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.one, self.two = nn.Linear(32, 32), nn.Linear(32, 32)

    def forward(self, x: Tensor) -> Tensor:
        value = functional.relu(self.one(x))
        return self.two(value) + value.mean()


def test_a_value_that_others_read_too_stays_a_float() -> None:
    x = torch.randn(1, 5, 32, generator=torch.Generator().manual_seed(0))
    graph = capture(Shared(), {"x": x})
    fused = lower(graph, quantized(graph), {"two": 0.02})
    assert fused.epilogues == {"one": "relu", "two": "none"}
    assert_equal(fused, lower(graph, quantized(graph), {"two": 0.02}, fuse=False), {"x": x})


def test_names_that_match_nothing() -> None:
    graph = capture(Shared(), {"x": torch.zeros(1, 5, 32)})
    with pytest.raises(InputError, match="unknown Linear 'tow'; did you mean 'two'"):
        lower(graph, {"tow": quantized(graph)["two"]}, {})
    with pytest.raises(InputError, match="unknown fused operation 'three'"):
        lower(graph, {}, {"three": 1.0})
