"""Do the methods' own proxies order models as the KL does?

Quantizers minimise something cheaper than the KL of the output: GPTQ the error of each layer's output,
||Wx - W'x||² (Frantar et al. 2022), AWQ's analysis the error of weights weighted by E[x²] (Lin et al.
2023). Both are computed from the weights, relative to the original's own size, averaged over layers.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from natprec.measurement.subject import Subject
from natprec.models.layers import known_layer
from natprec.tasks import Samples
from natprec.utils.hooks import attached
from natprec.utils.statistics import bootstrap_correlation, rank_correlation

PROXY_TOKENS = 2048
NAMES = ("layer_mse", "weighted_mse")
FITS = 20


@torch.no_grad()
def proxies(subject: Subject, model: nn.Module, samples: Samples, rescales: bool) -> dict[str, float | None]:
    """Mean over the blocks' Linear layers of the relative errors; inputs are the original's.

    Args:
        model: the same modules with other weights.
        samples: of the calibration text; the first 2048 tokens are used.
        rescales: divide out scales that the method moved between layers.
    Returns:
        Name of the proxy → mean; None where the weights are in another basis, so that the error is
        larger than the weights.
    """
    names = [site.name for site in subject.sites if site.role == "linear"]
    sums = {name: np.zeros(4) for name in names}
    errors = {}
    hooks = []
    for name in names:
        layer, rounded = known_layer(subject.model.get_submodule(name)), known_layer(model.get_submodule(name))
        weight, other = layer.matrix.detach(), rounded.matrix.detach()
        errors[name] = (without_scales(other, weight) if rescales else other) - weight
        hooks.append(layer.module.register_forward_hook(_gather(sums[name], weight, errors[name])))
    with attached(hooks):
        for sample in samples[: max(1, PROXY_TOKENS // samples.length)].split(1):
            subject.segmented.output(sample)
    layers = np.stack(list(sums.values()))
    ratios = layers[:, :2] / layers[:, 2:]
    return {name: float(mean) if mean < 1 else None for name, mean in zip(NAMES, ratios.mean(0), strict=True)}


def _gather(sums: np.ndarray, weight: Tensor, error: Tensor) -> Any:
    """A forward hook that adds up: output error, weighted error, and the same of the weight itself."""

    def hook(layer: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        x = inputs[0].reshape(-1, weight.shape[1])
        second = x.square().sum(0)
        sums[0] += float((x @ error.T).square().sum())
        sums[1] += float(error.square().sum(0) @ second)
        sums[2] += float((x @ weight.T).square().sum())
        sums[3] += float(weight.square().sum(0) @ second)

    return hook


def without_scales(other: Tensor, weight: Tensor) -> Tensor:
    """`other` divided by the row and column factors that fit it best to `weight`, by alternating least squares.

    The fit takes at most rows + columns of rows × columns degrees of freedom from the error.
    """
    rows = torch.ones(weight.shape[0], 1)
    columns = torch.ones(1, weight.shape[1])
    for _ in range(FITS):
        scaled = weight * rows
        columns = (other * scaled).sum(0, keepdim=True) / scaled.square().sum(0, keepdim=True).clamp_min(1e-30)
        scaled = weight * columns
        rows = (other * scaled).sum(1, keepdim=True) / scaled.square().sum(1, keepdim=True).clamp_min(1e-30)
    factors = rows * columns
    return torch.where(factors.abs() > 1e-12, other / factors, weight)


def correlations(rows: list[dict[str, Any]], seed: int) -> dict[str, Any]:
    """Spearman's rank correlation of each proxy with the KL over all rows that have both.

    Returns:
        Proxy → `spearman`, `ci95` (bootstrap over rows) and `rows`; None below four rows.
    """
    found: dict[str, Any] = {}
    for name in NAMES:
        pairs = [
            (row[name], row["kl_mean"]) for row in rows if row.get(name) is not None and row["kl_mean"] is not None
        ]
        if len(pairs) < 4:
            found[name] = {"spearman": None, "ci95": None, "rows": len(pairs)}
            continue
        values, kl = np.array(pairs).T
        interval = bootstrap_correlation(values, kl, seed)
        found[name] = {"spearman": rank_correlation(values, kl), "ci95": list(interval), "rows": len(pairs)}
    return found
