"""Capture and its fallback, domains, lint: on modules small enough to read."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from natprec.errors import InputError, ModelError
from natprec.inspection.ir import Materialization, assign_domains, capture, cost, find_edges
from natprec.inspection.ir.domains import place_of
from natprec.inspection.ir.flows import BUNDLE, flow
from natprec.inspection.ir.graph import weight_of
from natprec.inspection.ir.lint import double_roundings
from natprec.inspection.ir.observe import codebooks

BF16 = Materialization(torch.bfloat16)
X = torch.randn(2, 8, generator=torch.Generator().manual_seed(0))


class Gate(nn.Module):
    """Chooses by what the data are: torch.export cannot follow."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.one(x) if x.sum() > 0 else self.two(x)


class Deep(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(8, 8)
        self.blocks = nn.ModuleList([nn.Sequential(nn.Linear(8, 8), nn.ReLU()), Gate()])
        self.last = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.sin(self.first(x))
        for block in self.blocks:
            x = block(x)
        return self.last(x)


def test_data_dependent_control_flow_falls_back_to_modules_and_names_the_culprit() -> None:
    graph = capture(Deep().eval(), {"x": X})
    assert (graph.by, graph.culprit) == ("module hooks", "blocks.1")
    assert graph.reason
    names = [name for name in map(weight_of, graph.nodes) if name]
    assert names[:2] + names[3:] == ["first", "blocks.0.0", "last"]
    assert names[2] in ("blocks.1.one", "blocks.1.two")
    domains = assign_domains(graph, {"first": 4, "blocks.0.0": 4, names[2]: 8}, BF16)
    assert {site for domain in domains for site in domain.sites} == set(names)
    edges = {edge.names for edge in find_edges(graph)}
    assert ("blocks.0.1:relu", names[2]) in edges  # 4 to 8 bits, and the relu belongs to the Linear before it
    books = codebooks(graph, [{"x": X}], [edge.value for edge in find_edges(graph)], torch.bfloat16)
    assert all(book.elements > 0 for book in books.values())


def test_a_model_that_does_not_run_says_so() -> None:
    with pytest.raises(ModelError, match="does not run on these inputs"):
        capture(Deep(), {"x": torch.zeros(2, 9)})
    with pytest.raises(ModelError, match="no Linear, Conv or embedding"):
        capture(nn.ReLU(), {"input": X})


class Chain(nn.Module):
    """linear → relu → linear → add: one domain, or two."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.two(functional.relu(self.one(x))) + x


def test_equal_gauges_join_and_different_ones_meet_in_a_boundary() -> None:
    for widths, boundaries in (({"one": 4, "two": 4}, 2), ({"one": 4, "two": 8}, 3), ({}, 0)):
        graph = capture(Chain().eval(), {"x": X})
        domains = assign_domains(graph, widths, BF16)
        assert len(find_edges(graph)) == boundaries
        assert {domain.materialization.bits for domain in domains} == {16, *widths.values()}
        for node in graph.nodes:
            if weight_of(node) in widths:
                assert place_of(node).materialization.bits == widths[weight_of(node)]  # type: ignore[index]


def test_only_wider_codes_take_narrow_ones_for_free() -> None:
    graph = capture(Chain().eval(), {"x": X})
    assign_domains(graph, {"one": 3, "two": 8}, BF16)
    edges = {edge.names: edge for edge in find_edges(graph)}
    books = codebooks(graph, [{"x": X}], [edge.value for edge in edges.values()], torch.bfloat16)
    costs = {names: cost(edge, books[edge.value]) for names, edge in edges.items()}
    inner = costs["relu", "two"]
    assert (inner.source_bits, inner.target_bits, inner.free, inner.erased_bits) == (3, 8, True, 0)
    entering = costs["x", "one"] if ("x", "one") in costs else costs["placeholder", "one"]
    assert not entering.free
    assert entering.erased_bits > 0


def test_inf_names_the_site_and_the_batch_and_no_data_is_refused() -> None:
    graph = capture(Chain().eval(), {"x": X})
    node = next(node for node in graph.nodes if weight_of(node) == "one")
    bad = torch.cat([X[:1], torch.full((1, 8), torch.inf)])
    with pytest.raises(ModelError, match="activation 'one' holds 8 values of 16 that are NaN or Inf in batch 1"):
        codebooks(graph, [{"x": X}, {"x": bad}], [node], torch.bfloat16)
    with pytest.raises(InputError, match="no calibration sequences"):
        codebooks(graph, [], [node], torch.bfloat16)


def test_bounds_never_grow_through_elementwise_operators() -> None:
    graph = capture(Chain().eval(), {"x": X})
    assign_domains(graph, {"one": 4, "two": 8}, BF16)
    bundles = flow(graph, {})
    for node in graph.nodes:
        if weight_of(node) in ("one", "two"):
            assert node.meta[BUNDLE].entropy_bits <= place_of(node).materialization.bits
    assert all(0 <= bundle.entropy_bits <= 16 for bundle in bundles.values())
    known = {node: 1.5 for node in graph.nodes if weight_of(node) == "one"}
    after = flow(graph, known)
    relu = next(node for node in graph.nodes if "relu" in node.name)
    assert after[relu].entropy_bits == 1.5


def grid(x: Tensor) -> Tensor:
    return torch.fake_quantize_per_tensor_affine(x, 0.1, 0, -128, 127)


class Twice(nn.Module):
    def __init__(self, once: bool) -> None:
        super().__init__()
        self.gate, self.up, self.once = nn.Linear(8, 8), nn.Linear(8, 8), once

    def forward(self, x: Tensor) -> Tensor:
        gate = functional.silu(self.gate(x))
        return grid((gate if self.once else grid(gate)) * self.up(x))


def test_double_rounding_is_found() -> None:
    """linear → silu → Q → DQ → mul → Q, and not where it is rounded once, nor across a matrix product."""
    found = double_roundings(capture(Twice(once=False).eval(), {"x": X}))
    assert len(found) == 1
    assert found[0].between == ("mul",)
    assert double_roundings(capture(Twice(once=True).eval(), {"x": X})) == []
    across = nn.Sequential(Twice(once=True), nn.Linear(8, 8), Twice(once=True)).eval()
    assert double_roundings(capture(across, {"input": X})) == []
