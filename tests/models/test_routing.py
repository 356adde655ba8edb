"""Experts and routers are found by structure: what is measured, what stays at 16 bits, what belongs together."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from natprec.models.experts import take_apart
from natprec.models.segments import SegmentedModel
from natprec.models.weight_sites import Site, find_sites
from natprec.transforms import find_gauges
from tests.arrange import experts, tokens
from tests.conftest import tiny_model


class Listed(nn.Module):
    """A layer whose experts are a list of modules, as code that comes with a checkpoint has them."""

    def __init__(self) -> None:
        super().__init__()
        self.wg = nn.Linear(16, 3)
        self.members = nn.ModuleList(self._member() for _ in range(3))
        self.always = self._member()
        self.how_much = nn.Linear(16, 1)

    @staticmethod
    def _member() -> nn.Module:
        return nn.ModuleDict({"a": nn.Linear(16, 8), "b": nn.Linear(16, 8), "c": nn.Linear(8, 16)})

    def forward(self, hidden: Tensor) -> Tensor:
        flat = hidden.flatten(0, -2)
        scores = self.wg(flat)[:, :2]  # the last one is never chosen
        output = self.how_much(flat) * self._run(self.always, flat)
        for number in range(2):
            rows = torch.where(scores.argmax(-1) == number)[0]
            output = output.index_add(0, rows, self._run(self.members[number], flat[rows]))
        return output.view_as(hidden)

    @staticmethod
    def _run(member: nn.Module, rows: Tensor) -> Tensor:
        return member["c"](member["a"](rows).sigmoid() * member["b"](rows))  # type: ignore[index]


class Model(nn.Module):
    """Two such layers between an embedding and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(96, 16), nn.Linear(16, 96)
        self.layers = nn.ModuleList(Listed() for _ in range(2))

    def forward(self, input_ids: Tensor, use_cache: bool = False) -> SimpleNamespace:
        hidden = self.embed(input_ids)
        for layer in self.layers:
            hidden = layer(hidden)
        return SimpleNamespace(logits=self.head(hidden))


def segmented(model: nn.Module) -> SegmentedModel:
    return SegmentedModel(model, tokens(1, 8))


def sites_of(model: nn.Module) -> dict[str, Site]:
    return {site.name: site for site in find_sites(segmented(model))}


def test_experts_of_a_list() -> None:
    torch.manual_seed(0)
    model = Model()
    routing = segmented(model).routing
    assert set(routing.containers.values()) == {"layers.0.members", "layers.1.members"}
    assert len(routing.containers) == 2 * 3 * 3
    assert routing.routers == {f"layers.{n}.{name}" for n in (0, 1) for name in ("wg", "how_much")}
    sites = sites_of(model)
    assert not routing.routers & sites.keys()
    assert sites["layers.0.always.a"].experts == ""
    for number in range(3):  # the last is reached by no token; its fused groups are those of the others
        assert sites[f"layers.1.members.{number}.b"].fused_group == f"layers.1.members.{number}.a"
        assert sites[f"layers.1.members.{number}.c"].fused_group == f"layers.1.members.{number}.c"
        assert sites[f"layers.1.members.{number}.c"].experts == "layers.1.members"


def test_a_dense_model_has_neither() -> None:
    routing = segmented(tiny_model(vocab_size=96)).routing
    assert not routing.containers
    assert not routing.routers


@pytest.mark.parametrize(
    ("family", "routers"),
    [
        ("Mixtral", ["gate"]),
        ("Qwen2Moe", ["gate", "shared_expert_gate"]),
        ("Qwen3Moe", ["gate"]),
        ("GptOss", ["router"]),
    ],
)
def test_experts_of_transformers(family: str, routers: list[str]) -> None:
    model = experts(family)
    take_apart(model)
    own = segmented(model)
    assert own.routing.routers == {f"model.layers.{n}.mlp.{name}" for n in (0, 1) for name in routers}
    sites = sites_of(model)
    inside = [site for site in sites.values() if site.experts]
    assert {site.experts for site in inside} == {"model.layers.0.mlp.experts", "model.layers.1.mlp.experts"}
    assert len(inside) == 2 * 4 * 3
    assert all(site.fused_group == site.name.replace("up_proj", "gate_proj") for site in inside)
    assert not own.routing.routers & sites.keys()


def test_channels_of_an_expert_are_rescaled_in_that_expert() -> None:
    model = experts()
    take_apart(model)
    own = segmented(model)
    gauges = find_gauges(own, find_sites(own), tokens(1, 8))
    found = {fused_group: gauge.producer for fused_group, gauge in gauges.items() if ".experts." in fused_group}
    assert found, "some expert is reached"
    assert all(fused_group.replace("down_proj", "up_proj") == producer for fused_group, producer in found.items())
    assert not any(fused_group.endswith("gate_proj") for fused_group in found), "the router reads the norm too"
