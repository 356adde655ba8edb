"""Products in bfloat16: near enough where they serve averages, never where something is judged."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional

from natprec import native
from natprec.config import ARITHMETIC
from natprec.errors import InputError
from natprec.formats import engine_profile
from natprec.measurement.exact import exact_curves
from natprec.measurement.measure import measure
from natprec.measurement.subject import Subject
from natprec.pipeline.rounded import round_to_plan
from natprec.utils.matmul import DTYPES, arithmetic, product, products_in
from natprec.utils.progress import Stages
from tests.arrange import restore, snapshot, subject, tokens
from tests.conftest import made_up_text, tiny_encoder, tiny_model
from tests.run_command import SMALL, natprec

CPU = torch.device("cpu")


def encoder(products: str) -> Subject:
    """Its distortion draws signs that do not depend on the output, so that both arithmetics see the same draws."""
    return Subject.in_memory(tiny_encoder(vocab_size=96), None, "small", products=products)


def test_names() -> None:
    assert arithmetic("float32", CPU) == torch.float32
    assert arithmetic("bfloat16", CPU) == torch.bfloat16
    with pytest.raises(InputError, match="did you mean 'bfloat16'"):
        arithmetic("bfloat", CPU)
    assert ("auto", *DTYPES) == ARITHMETIC


def test_masks_mean_the_least_number_of_what_they_fill() -> None:
    """DeBERTa fills scores, which a product in bfloat16 gives, with the least number of its float32 queries."""
    least = torch.finfo(torch.float32).min
    with products_in(torch.bfloat16, CPU):
        scores = torch.randn(2, 3, 4) @ torch.randn(4, 5)
        assert scores.dtype == torch.bfloat16
        filled = scores.masked_fill(torch.ones(5, dtype=torch.bool), least)
        assert (filled == torch.finfo(torch.bfloat16).min).all()
        assert scores.masked_fill(torch.ones(5, dtype=torch.bool), -torch.inf).isinf().all()
        assert (torch.ones(3).masked_fill(torch.ones(3, dtype=torch.bool), least) == least).all()


MACHINES = """
import json, torch
from natprec.utils.matmul import arithmetic, multiplies_bfloat16
torch.cpu._is_amx_tile_supported = lambda: False
found = [multiplies_bfloat16(torch.device("meta"))]
for has in (True, False):
    torch.cpu._is_avx512_bf16_supported = lambda: has
    found += [multiplies_bfloat16(torch.device("cpu")), str(arithmetic("auto", torch.device("cpu")))]
print(json.dumps(found))
"""


def test_auto_is_what_the_machine_multiplies() -> None:
    """In a process of its own: all others have the machine that conftest gives them."""
    shown = subprocess.run([sys.executable, "-c", MACHINES], capture_output=True, text=True, check=True).stdout
    assert json.loads(shown) == [False, True, "torch.bfloat16", False, "torch.float32"]


def test_products_alone_are_rounded() -> None:
    layer, x = torch.nn.Linear(4, 4), torch.randn(2, 4)
    with products_in(torch.bfloat16, CPU):
        assert layer(x).dtype == torch.bfloat16
        assert (x + layer(x)).dtype == torch.float32
    with products_in(torch.float32, CPU):
        assert layer(x).dtype == torch.float32


def test_a_product_may_be_changed_in_place() -> None:
    """Gemma 3n does so."""
    layer, x = torch.nn.Linear(96, 160).requires_grad_(False), torch.randn(3, 50, 96, requires_grad=True)
    with products_in(torch.float32, CPU):
        (found,) = torch.autograd.grad(layer(x).mul_(2.0).square().sum(), x)
    (expected,) = torch.autograd.grad((2 * layer(x)).square().sum(), x)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("bias", [True, False])
def test_float32_products_are_torchs(bias: bool) -> None:
    """Forward and back; a weight that learns, and dtypes that are not float32, are left to torch."""
    layer = torch.nn.Linear(96, 160, bias).requires_grad_(False)
    x = torch.randn(3, 50, 96, requires_grad=True)
    expected = layer(x)
    (gradient,) = torch.autograd.grad(expected.square().sum(), x)
    with products_in(torch.float32, CPU):
        found = layer(x)
        halves = layer.double()(x.double())
        learning = torch.nn.Linear(96, 160, bias)(x)
    layer.float()
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(torch.autograd.grad(found.square().sum(), x)[0], gradient, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(halves.float(), expected, rtol=1e-5, atol=1e-5)
    assert "_Linear" in type(found.grad_fn.next_functions[0][0]).__name__
    assert "_Linear" not in type(learning.grad_fn).__name__


def test_products_of_nothing() -> None:
    """As an expert's, that no token reached."""
    layer = torch.nn.Linear(8, 6).requires_grad_(False)
    with products_in(torch.float32, CPU):
        assert layer(torch.empty(0, 8)).shape == (0, 6)


@pytest.mark.parametrize("rows", [slice(None), slice(16, 80), slice(3, 90, 2)])
def test_a_product_of_any_slices(rows: slice) -> None:
    """oneDNN takes a thousand times as long for strides that are no matrix's own, so these are copied first."""
    left, right = torch.randn(120, 96)[:, rows], torch.randn(140, 96)[:, rows]
    torch.testing.assert_close(product(left, right), left @ right.T, rtol=1e-5, atol=1e-5)
    with products_in(torch.bfloat16, CPU):
        assert product(left, right).dtype == torch.float32


@pytest.mark.parametrize("given", [{"is_causal": True}, {"is_causal": True, "scale": 0.3, "enable_gqa": True}])
def test_attention_that_nothing_goes_back_through_is_our_own(
    given: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    query, key, value = torch.randn(3, 2, 4, 40, 32)
    key, value = (x[:, :2] if "enable_gqa" in given else x for x in (key, value.bfloat16()))
    own, attend = [], native.attention
    monkeypatch.setattr(native, "attention", lambda *args: own.append(1) or attend(*args))
    exact = functional.scaled_dot_product_attention(query.double(), key.double(), value.double(), **given)
    with products_in(torch.bfloat16, CPU):
        usual = functional.scaled_dot_product_attention(query, key, value, **given)
        assert len(own) == native.on_bfloat16()
        assert usual.shape == exact.shape
        assert (usual - exact).norm() < 0.01 * exact.norm()
        functional.scaled_dot_product_attention(query.clone().requires_grad_(), key, value, **given)
        functional.scaled_dot_product_attention(query, key, value, enable_gqa="enable_gqa" in given)
        assert len(own) == native.on_bfloat16(), "with gradients, or not causal: torch's"
    with products_in(torch.float32, CPU):
        functional.scaled_dot_product_attention(query, key, value.float(), **given)
    assert len(own) == native.on_bfloat16(), "what judges never uses it"


@pytest.mark.parametrize(
    ("query", "key"),
    [
        ((2, 1, 40, 32), (2, 4, 40, 32)),
        ((2, 4, 40, 32), (1, 4, 40, 32)),
        ((4, 40, 32), (4, 40, 32)),
        ((1, 2, 9, 8),) * 2,
    ],
    ids=["fewer heads", "one batch", "no batch", "small heads"],
)
def test_attention_of_other_shapes_is_torchs(query: tuple[int, ...], key: tuple[int, ...]) -> None:
    states = torch.randn(query), torch.randn(key), torch.randn(key)
    exact = functional.scaled_dot_product_attention(*states, is_causal=True)
    with products_in(torch.bfloat16, CPU):
        found = functional.scaled_dot_product_attention(*states, is_causal=True)
    assert found.shape == exact.shape
    assert (found - exact).norm() < 0.01 * exact.norm()


def test_curves_are_those_of_float32_within_a_few_percent() -> None:
    text = tokens(8, 16)
    rough, fine = (measure(encoder(products), text, group_size=32) for products in ("bfloat16", "float32"))
    assert (rough.header.products, fine.header.products) == ("bfloat16", "float32")
    for name, curve in fine.curves.items():
        if curve.energy.any():
            np.testing.assert_allclose(rough.curves[name].kl(), curve.kl(), rtol=0.1)
    first = next(iter(fine.curves))
    assert not np.array_equal(rough.curves[first].forward, fine.curves[first].forward), "they are not the same run"


def test_what_judges_does_not_know_of_it() -> None:
    text, found = tokens(2, 8), []
    for products in (torch.bfloat16, torch.float32):
        of = subject()
        of.segmented.products = products
        wanted = [(of.sites[3], of.candidates(engine_profile("vllm"), 32)[of.sites[3].name])]
        found.append([values for _, values in exact_curves(of.segmented, wanted, text, of.storage_dtype)])
    np.testing.assert_array_equal(*found)


def test_gptq_is_fitted_in_it_too() -> None:
    of, text = subject(), tokens(8, 16)
    plan = measure(of, text, group_size=32).solve(bits=4)
    codes, before = {}, snapshot(of.model)
    for products in (torch.bfloat16, torch.float32):
        of.segmented.products = products
        codes[products] = round_to_plan(of, plan, text, "gptq", Stages(quiet=True))
        restore(of.model, before)
    rough, fine = (torch.cat([each.codes.flatten() for each in found.values()]) for found in codes.values())
    assert 0 < (rough != fine).float().mean() < 0.2


def test_activations_are_measured_in_float32() -> None:
    of = encoder("bfloat16")
    assert measure(of, tokens(4, 8), group_size=32, sites="all").header.products == "float32"


def test_a_measurement_in_the_other_arithmetic_is_not_gone_on_from(tmp_path: Path, tiny_tokenizer: Any) -> None:
    tiny_model().save_pretrained(tmp_path / "m")
    tiny_tokenizer.save_pretrained(tmp_path / "m")
    (tmp_path / "text.txt").write_text(made_up_text(3000))
    options = ("quantize", "--model", tmp_path / "m", "--data", tmp_path / "text.txt", *SMALL, "--eval-tokens", "128")
    options += ("--out", tmp_path / "out", "--eps", "1e-12")
    refused = natprec(*options, "--arithmetic", "bfloat16")
    assert refused.code == 2
    assert "kept for natprec solve" in refused.reason
    assert "its arithmetic is 'bfloat16', now 'float32'" in natprec(*options, "--resume").reason
