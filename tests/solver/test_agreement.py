"""A plan agrees with itself, with its engine, and with the model that it is applied to, or says where it does not."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import natprec
from natprec.errors import InputError
from natprec.formats import integer
from natprec.measurement.subject import Subject
from natprec.solver import Plan
from tests.arrange import curve, measurement, subject

Q, K, DOWN = (f"model.layers.0.{name}" for name in ("self_attn.q_proj", "self_attn.k_proj", "mlp.down_proj"))


@pytest.fixture(scope="module")
def model() -> Subject:
    return subject()


@pytest.fixture(scope="module")
def plan(model: Subject) -> Plan:
    formats = [integer(bits, 32) for bits in (2, 4, 8)]
    made = [curve(site.name, [1e-2, 1e-4, 1e-6], formats) for site in model.sites]
    curves = [replace(each, site=site) for each, site in zip(made, model.sites, strict=True)]
    return measurement(curves, engine="natprec", model_digest=model.digest).solve(bits=5)


@pytest.fixture
def edited(plan: Plan, tmp_path: Path) -> Callable[[Callable[[Any], None]], Path]:
    """A plan.json that someone changed, who took the checksum out."""

    def edit(change: Callable[[Any], None]) -> Path:
        plan.save(tmp_path / "plan.json")
        content = json.loads((tmp_path / "plan.json").read_text())
        del content["checksum"]
        change(content)
        (tmp_path / "plan.json").write_text(json.dumps(content))
        return tmp_path / "plan.json"

    return edit


def test_an_edited_plan_is_used(edited: Callable[..., Path], plan: Plan, model: Subject) -> None:
    """Another format, the numbers that follow from it left out."""

    def change(content: Any) -> None:
        site = content["sites"][DOWN]
        for name in ("stored_bits", "bits", "group_size", "symmetric", "dual_bits"):
            del site[name]
        site["format"] = "int3-g16-asym"

    found = Plan.load(edited(change))
    found.refuse_other_sites(model)
    assert found.sites[DOWN] == replace(plan.sites[DOWN], format=integer(3, 16, False))
    assert {**found.sites, DOWN: None} == {**plan.sites, DOWN: None}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"format": "int9-g64"}, "format is 'int9-g64': unknown format 'int9-g64'; write for example int4-g64"),
        ({"format": "e3m4"}, "format is 'e3m4': unknown format"),
        ({"format": "a8-token"}, "format is 'a8-token': unknown format"),
        ({"format": "Q4_K", "bits": 4, "symmetric": False}, "format is Q4_K, which engine 'natprec' does not run"),
        ({"bits": 7}, r"bits is 7, and from the other fields follows \d: leave it out"),
        ({"group_size": None}, "group_size is None, and from the other fields follows 32"),
        ({"stored_bits": 4.0}, "stored_bits is 4.0, and from the other fields follows"),
        ({"kl": -1e-3}, "sites have a kl of -0.001, and kl is never below 0"),
        ({"kl": 0.5}, r"kl_sum is 0\.\d+, and its sites make 0\.5\d*"),
        ({"stored_bytes": 0, "stored_bits": 0}, "bits_per_weight_total is"),
        ({"natural_bits": 17}, "natural_bits is 17, and must be a whole number, from 1 to 16"),
        ({"scaled": 1}, "scaled is 1, and must be true or false"),
        ({"colour": "red"}, "has an unknown key 'colour'"),
        ({"fromat": "int8-g32"}, "has an unknown key 'fromat'; did you mean 'format'"),
    ],
    ids=str,
)
def test_what_a_site_of_a_plan_cannot_be(edited: Callable[..., Path], change: dict[str, Any], said: str) -> None:
    file = edited(lambda content: content["sites"][DOWN].update(change))
    with pytest.raises(InputError, match=rf"plan '.*plan.json': .*{said}.*solve again"):
        Plan.load(file)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"engine": "vlm"}, r"engine is an unknown name 'vlm'; did you mean 'vllm'"),
        ({"engine": "llama.cpp"}, r"format is int\d-g32, which engine 'llama.cpp' does not run"),
        ({"eps": 0}, "eps is 0, and must be a number up to 1e.100, above 0"),
        ({"rotation": -1}, "rotation is -1, and must be a whole number, from 0 to 9223372036854775807"),
        ({"kl_predicted_ci95": [2, 1]}, "kl_predicted_ci95 goes from 2 to 1"),
        ({"stored_bytes": 10}, "stored_bytes is 10, and its sites alone take"),
        (
            {"inputs": {"x": {"format": None, "natural_bits": None, "kl": 0}}},
            "inputs has 'x', which is the fused group of no",
        ),
        ({"cache": {"format": "fp8-tensor", "kl": 0, "largest": {}}}, "cache.format is fp8-tensor, in which engine"),
        ({"cache": {"format": "int8-g16", "kl": 0, "largest": {}}}, "cache.format is 'int8-g16': unknown activation"),
        ({"version": 0}, 'has a format, and plans of version 0 have none: say "version": 1'),
    ],
    ids=str,
)
def test_what_a_plan_cannot_be(edited: Callable[..., Path], change: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=rf"plan '.*plan.json': .*{said}.*solve again"):
        Plan.load(edited(lambda content: content.update(change)))


def test_products_that_the_engine_has_not(edited: Callable[..., Path]) -> None:
    def change(content: Any) -> None:
        content["engine"] = "sglang"
        for site in content["sites"].values():
            site.update(format="int4-g32", bits=4, symmetric=True)
        content["inputs"] = {DOWN: {"format": "a8-token", "natural_bits": None, "kl": 0}}

    with pytest.raises(InputError, match=r"int4-g32, which engine 'sglang' does not multiply with a8-token"):
        Plan.load(edited(change))


def without(plan: Plan, *names: str) -> Plan:
    return replace(plan, sites={name: choice for name, choice in plan.sites.items() if name not in names})


def with_site(plan: Plan, name: str, **changes: Any) -> Plan:
    return replace(plan, sites={**plan.sites, name: replace(plan.sites[DOWN], **changes)})


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda plan: without(plan, Q), rf"lacks of the model's \d+ weights: '{Q}';"),
        (lambda plan: without(plan, Q, K), rf"lacks of the model's \d+ weights: '{K}' and 1 more;"),
        (lambda plan: with_site(plan, "other"), r"has what is none of the model's \d+ weights: 'other'"),
        (lambda plan: with_site(plan, DOWN, elements=7), r"elements is 7, and the model's weight has 2048"),
        (lambda plan: with_site(plan, DOWN, format=integer(4, 48)), "int4-g48, whose groups do not divide rows of 64"),
        (lambda plan: replace(plan, engine="vllm"), r"embed_tokens'\].format is int\d-g32, which engine 'vllm'"),
        (
            lambda plan: with_site(plan, K, format=integer(3, 32), elements=512),
            r"k_proj'\].format is int3-g32, and int\d-g32 is that of others that engine 'natprec' runs together",
        ),
        (
            lambda plan: replace(plan, inputs={"nowhere": next(iter(plan.inputs.values()), None)}),  # type: ignore[dict-item]
            "inputs has 'nowhere', and the model has no weights with such an input",
        ),
    ],
)  # fmt: skip
def test_a_plan_of_other_sites_is_refused_before_work(
    change: Callable[[Plan], Plan], said: str, plan: Plan, model: Subject
) -> None:
    plan.refuse_other_sites(model)
    with pytest.raises(InputError, match=rf"the plan of 'made-up': .*{said}"):
        change(plan).refuse_other_sites(model)
    with pytest.raises(InputError, match=said):
        natprec.apply(change(plan), model.model, rounding="rtn")


def test_a_plan_of_version_0(plan: Plan, edited: Callable[..., Path]) -> None:
    """It names no formats: their numbers say them, -1 for a whole row."""

    def older(content: Any) -> None:
        del content["version"]
        for name, site in content["sites"].items():
            del site["format"], site["stored_bits"]
            site["type"] = None
            if name == Q:
                site.update(group_size=-1)
            if name == DOWN:
                site.update(bits=16, group_size=None, symmetric=None)

    found = Plan.load(edited(older))
    fmt = plan.sites[Q].format
    assert fmt is not None
    expected = {Q: integer(fmt.bits, None), DOWN: None}
    assert {name: choice.format for name, choice in found.sites.items()} == {
        name: expected.get(name, choice.format) for name, choice in plan.sites.items()
    }


@pytest.mark.parametrize("change", [{"bits": 9}, {"bits": "4"}, {"group_size": 0.5}, {"symmetric": None}, {"type": 4}])
def test_a_plan_of_version_0_that_is_wrong(change: dict[str, Any], edited: Callable[..., Path]) -> None:
    def older(content: Any) -> None:
        content["version"] = 0
        for site in content["sites"].values():
            del site["format"], site["stored_bits"]
        content["sites"][DOWN].update(change)

    with pytest.raises(InputError, match=rf"plan '.*': sites\['{DOWN}'\].{next(iter(change))} is"):
        Plan.load(edited(older))


def test_sums_may_round(plan: Plan, edited: Callable[..., Path]) -> None:
    def change(content: Any) -> None:
        content["kl_predicted"] = float(np.nextafter(content["kl_predicted"], 1))

    assert Plan.load(edited(change)).sites == plan.sites
