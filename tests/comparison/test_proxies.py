from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

from natprec.comparison.proxies import correlations, proxies, without_scales
from natprec.measurement.subject import Subject
from natprec.tasks import Samples
from tests.conftest import tiny_model

IDS = Samples.text(torch.arange(128).reshape(2, 64))
LAYER = "model.layers.1.mlp.down_proj"


@pytest.fixture(scope="module")
def subject() -> Subject:
    return Subject.in_memory(tiny_model(), None)


def test_the_errors_are_the_definitions(subject: Subject) -> None:
    """One layer changed: ||dW X||² / ||W X||² and sum(E[x²] dW²) / sum(E[x²] W²), over 14 layers."""
    model = copy.deepcopy(subject.model)
    layer = model.get_submodule(LAYER)
    inputs = []
    handle = subject.model.get_submodule(LAYER).register_forward_hook(lambda _, args, __: inputs.append(args[0]))
    subject.model(input_ids=IDS.ids)
    handle.remove()
    x = inputs[0].reshape(-1, 128)
    weight = subject.model.get_submodule(LAYER).weight
    noise = 0.01 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(0))  # type: ignore[arg-type]
    layer.weight.data += noise  # type: ignore[operator, union-attr]
    found = proxies(subject, model, IDS, rescales=False)
    second = x.square().mean(0)
    expected = float((x @ noise.T).square().sum() / (x @ weight.T).square().sum()) / 14  # type: ignore[union-attr]
    weighted = float((second * noise**2).sum() / (second * weight**2).sum()) / 14  # type: ignore[operator]
    assert found["layer_mse"] == pytest.approx(expected, rel=1e-4)
    assert found["weighted_mse"] == pytest.approx(weighted, rel=1e-4)


def test_the_original_has_no_error(subject: Subject) -> None:
    assert proxies(subject, subject.model, IDS, rescales=False) == {"layer_mse": 0, "weighted_mse": 0}


def test_moved_scales_are_no_error(subject: Subject) -> None:
    """As AWQ and SmoothQuant move them: columns of a layer times s, rows of the one before divided by s."""
    model = copy.deepcopy(subject.model)
    scales = 0.1 + 3 * torch.rand(128, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        model.get_submodule(LAYER).weight *= scales  # type: ignore[operator]
        model.get_submodule("model.layers.1.mlp.up_proj").weight /= scales[:, None]  # type: ignore[operator]
    taken = proxies(subject, model, IDS, rescales=True)
    assert taken["layer_mse"] == pytest.approx(0, abs=1e-9)
    left = proxies(subject, model, IDS, rescales=False)
    assert left["layer_mse"] is None or left["layer_mse"] > 1e-2


def test_fitting_scales_hides_almost_nothing_of_an_error() -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(64, 128, generator=generator)
    noise = 0.05 * torch.randn(64, 128, generator=generator)
    left = without_scales(weight + noise, weight) - weight
    assert 0.95 < float(left.square().sum() / noise.square().sum()) < 1.02


def test_another_basis_has_no_proxy(subject: Subject) -> None:
    model = copy.deepcopy(subject.model)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, torch.nn.Linear):
                module.weight.copy_(-module.weight)
    assert proxies(subject, model, IDS, rescales=False) == {"layer_mse": None, "weighted_mse": None}


def test_correlation_of_orders() -> None:
    kl = [0.1, 0.2, 0.3, 0.4, 0.5]
    rows = [{"kl_mean": value, "layer_mse": value**2, "weighted_mse": -value if value < 0.45 else None} for value in kl]
    rows.append({"kl_mean": None, "layer_mse": None, "weighted_mse": None})  # type: ignore[dict-item]
    found = correlations(rows, seed=0)
    assert found["layer_mse"] == {"spearman": 1, "ci95": [1, 1], "rows": 5}
    assert found["weighted_mse"]["spearman"] == -1
    assert correlations(rows[:3], seed=0)["layer_mse"] == {"spearman": None, "ci95": None, "rows": 3}


def test_rank_correlation_matches_its_definition_with_ties() -> None:
    from natprec.utils.statistics import rank_correlation

    one, other = np.array([1.0, 2, 2, 4, 5]), np.array([3.0, 1, 4, 1, 9])
    ranks = np.array([1, 2.5, 2.5, 4, 5]), np.array([3, 1.5, 4, 1.5, 5])
    assert rank_correlation(one, other) == pytest.approx(np.corrcoef(*ranks)[0, 1])
    assert rank_correlation(one, np.ones(5)) == 0
