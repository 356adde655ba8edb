"""Experts of one parameter, taken apart: the same function, the names that a checkpoint has, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from natprec.errors import ModelError
from natprec.models.disk_names import DiskNames
from natprec.models.experts import linear_experts, pieces_of, take_apart
from natprec.models.loading import load_model
from tests.arrange import experts, tokens

ONE_BY_ONE = ("Mixtral", "Qwen2Moe", "Qwen3Moe", "Olmoe")
TOGETHER = ("GptOss", "GraniteMoe")
"""Families whose experts are stored one by one, and as one tensor."""


@pytest.mark.parametrize("family", [*ONE_BY_ONE, *TOGETHER])
@torch.no_grad()
def test_experts_are_linears_that_compute_the_same(family: str) -> None:
    model, text = experts(family), tokens(2, 12)
    expected = model(input_ids=text.ids).logits
    take_apart(model)
    containers = dict(linear_experts(model))
    assert len(containers) == 2
    for module in containers.values():
        linears = [each for each in module.modules() if isinstance(each, nn.Linear)]
        assert len(linears) == 3 * 4
        assert not list(module.parameters(recurse=False)), "nothing is kept twice"
    torch.testing.assert_close(model(input_ids=text.ids).logits, expected)
    take_apart(model)  # again: nothing is left to do
    torch.testing.assert_close(model(input_ids=text.ids).logits, expected)
    next(iter(containers.values())).get_submodule("1.up_proj").weight.data.zero_()
    assert not torch.allclose(model(input_ids=text.ids).logits, expected)


def test_linears_are_views_where_they_can_be() -> None:
    model = experts()
    before = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    take_apart(model)
    assert {parameter.untyped_storage().data_ptr() for parameter in model.parameters()} == before


@pytest.mark.parametrize("family", ONE_BY_ONE)
def test_names_and_values_are_those_that_transformers_stores(family: str, tmp_path: Path) -> None:
    model = experts(family)
    model.save_pretrained(tmp_path)
    stored = load_file(tmp_path / "model.safetensors")
    take_apart(model)
    names = DiskNames(model)
    ours = {names.tensor(name): value for name, value in model.state_dict().items()}
    assert names.merged
    assert ours.keys() == stored.keys()
    assert all(torch.equal(ours[name], stored[name]) for name in stored)
    module = next(iter(pieces_of(model))).removesuffix(".weight")
    assert names.in_model.get(names.module(module), module) == module


@pytest.mark.parametrize("family", TOGETHER)
def test_experts_that_are_stored_together_are_named_as_engines_know_them(family: str) -> None:
    model = experts(family)
    take_apart(model)
    names = DiskNames(model)
    assert not names.merged
    container = next(iter(linear_experts(model)))[0]
    assert names.module(f"{container}.3.up_proj").endswith("experts.3.up_proj")


def test_a_dense_model_keeps_its_names() -> None:
    from tests.conftest import tiny_model

    names = DiskNames(tiny_model())
    assert names.merged
    assert names.module("model.layers.0.mlp.gate_proj") == "model.layers.0.mlp.gate_proj"


class Silent(nn.Module):
    """Experts of one parameter, which no flag describes."""

    def __init__(self) -> None:
        super().__init__()
        self.num_experts = 4
        self.gate = nn.Parameter(torch.zeros(4, 8))  # a router is no expert
        self.w1 = nn.Parameter(torch.zeros(4, 16, 8))


class Flat(nn.Module):
    """One below the other."""

    def __init__(self) -> None:
        super().__init__()
        self.num_local_experts = 4
        self.w2 = nn.Parameter(torch.zeros(4 * 16, 8))


@pytest.mark.parametrize(("kind", "named"), [(Silent, "mlp.experts.w1"), (Flat, "mlp.experts.w2")])
def test_a_layout_that_nothing_describes_is_refused_by_name(kind: type[nn.Module], named: str) -> None:
    model = nn.ModuleDict({"mlp": nn.ModuleDict({"experts": kind()})})
    with pytest.raises(ModelError, match=rf"'{named}' of shape .*{kind.__name__} does not say how"):
        take_apart(model)


def test_a_class_that_does_more_than_its_flags_say_is_refused() -> None:
    model = experts()
    layer = model.model.layers[1].mlp.experts

    class Doubled(type(layer)):  # type: ignore[misc]
        def forward(self, *args: Any) -> Any:
            return 2 * super().forward(*args)

    layer.__class__ = Doubled
    with pytest.raises(ModelError, match=r"'model\.layers\.1\.mlp\.experts': taken apart .* something else"):
        take_apart(model)


def test_bad_layout_ends_a_command_in_one_line(tmp_path: Path, tiny_tokenizer: Any) -> None:
    import transformers

    config = transformers.JetMoeConfig(
        vocab_size=512, hidden_size=32, num_hidden_layers=1, num_attention_heads=4, num_key_value_heads=2,
        kv_channels=8, intermediate_size=32, num_local_experts=4, num_experts_per_tok=2,
    )  # fmt: skip
    transformers.JetMoeForCausalLM(config).save_pretrained(tmp_path)
    tiny_tokenizer.save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=r"experts 'model\.layers\.0\.\S+\.weight' of shape \(4, "):
        load_model(str(tmp_path))
    with pytest.raises(ModelError, match=r"experts 'model\.layers\.0\.\S+\.weight' of shape \(4, "):
        load_model(str(tmp_path), on_disk=True)
