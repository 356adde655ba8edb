"""Which tensors are measured, and which of them share a format."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from natprec.errors import InputError, ModelError
from natprec.formats import CHANNEL, integer
from natprec.models.segments import SegmentedModel
from natprec.models.weight_sites import Site, find_sites, refuse_indivisible, site_weight
from natprec.utils.schema import Place, read
from tests.arrange import SMALL, tokens
from tests.conftest import tiny_model


def sites_of(model: nn.Module) -> dict[str, Site]:
    return {site.name: site for site in find_sites(SegmentedModel(model, tokens(1, 8)))}


def units_of(sites: dict[str, Site]) -> set[frozenset[str]]:
    fused_groups: dict[str, set[str]] = {}
    for site in sites.values():
        fused_groups.setdefault(site.fused_group, set()).add(site.name)
    return {frozenset(names) for names in fused_groups.values()}


def test_units_of_a_llama() -> None:
    expected = {frozenset({"model.embed_tokens"})}
    for layer in ("model.layers.0.", "model.layers.1."):
        for names in (("q", "k", "v"), ("o",)):
            expected.add(frozenset(f"{layer}self_attn.{name}_proj" for name in names))
        for names in (("gate", "up"), ("down",)):
            expected.add(frozenset(f"{layer}mlp.{name}_proj" for name in names))
    assert units_of(sites_of(tiny_model(**SMALL))) == expected


class Odd(nn.Module):
    """Fused groups by structure alone: no name says what belongs together."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(96, 16)
        self.inner = nn.Module()
        for name in ("anna", "bert", "carl", "dora"):
            setattr(self.inner, name, nn.Linear(16, 16))
        self.other = nn.Linear(16, 16)
        self.unused = nn.Linear(16, 16)

    def forward(self, input_ids: Tensor, use_cache: bool = False) -> SimpleNamespace:
        hidden = self.table(input_ids)
        mixed = self.inner.anna(hidden) + self.inner.carl(hidden) + self.other(hidden)
        return SimpleNamespace(logits=self.inner.dora(self.inner.bert(mixed)))


def test_units_are_linears_of_one_parent_with_one_input() -> None:
    sites = sites_of(Odd())
    assert units_of(sites) == {
        frozenset({"inner.anna", "inner.carl"}),
        *(frozenset({name}) for name in ("table", "inner.bert", "inner.dora", "other", "unused")),
    }


def test_tied_embedding_is_one_site_with_two_uses() -> None:
    sites = sites_of(tiny_model(**SMALL))
    assert sites["model.embed_tokens"].uses == ("model.embed_tokens", "lm_head")
    assert sites["model.embed_tokens"].role == "embedding"
    assert sites["model.embed_tokens"].segment == -1
    assert "lm_head" not in sites


def test_untied_head_is_a_site_of_its_own() -> None:
    sites = sites_of(tiny_model(**SMALL, tie_word_embeddings=False))
    assert sites["model.embed_tokens"].uses == ("model.embed_tokens",)
    assert sites["lm_head"].role == "head"
    assert sites["lm_head"].segment == 2
    assert len(sites) == 2 + 2 * 7


def test_weights_and_elements_match() -> None:
    model = tiny_model(**SMALL)
    for site in sites_of(model).values():
        assert tuple(site_weight(model, site).shape) == site.shape
        assert site.elements == site_weight(model, site).numel()
        assert read(Site, json.loads(json.dumps(site.to_json())), Place("a site", "")) == site


def test_model_without_linear() -> None:
    class Table(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Embedding(96, 96)

        def forward(self, input_ids: Tensor, use_cache: bool = False) -> SimpleNamespace:
            return SimpleNamespace(logits=self.table(input_ids))

    with pytest.raises(ModelError, match="Table has no Linear layer"):
        sites_of(Table())


@pytest.mark.parametrize(("columns", "advice"), [(96, "--group-size 32$"), (192, "--group-size 32 or 64$"),
                                                 (100, "--group-size channel$")])  # fmt: skip
def test_indivisible_group_names_the_layer_and_what_divides(columns: int, advice: str) -> None:
    fine = Site("fine", "weight", "linear", (8, 256), ("fine",), "fine", 0)
    bad = Site("layers.3.odd", "weight", "linear", (8, columns), ("layers.3.odd",), "layers.3.odd", 0)
    with pytest.raises(InputError, match=rf"group size 128 .* {columns} inputs of 'layers.3.odd'.*{advice}"):
        refuse_indivisible([fine, bad], (integer(4, 128),))
    refuse_indivisible([fine, bad], (integer(4, CHANNEL),))
    refuse_indivisible([fine], (integer(4, 128),))


def test_finding_sites_leaves_the_model_alone() -> None:
    model = tiny_model(**SMALL)
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    sites_of(model)
    assert all(torch.equal(parameter, before[name]) for name, parameter in model.named_parameters())
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in model.modules())
