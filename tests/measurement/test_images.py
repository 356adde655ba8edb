"""Nothing in the sweep asks whether samples are text: a small vision transformer is measured on pixels."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from natprec.distortions import FeatureDistance
from natprec.formats import integer
from natprec.measurement.exact import exact_curves
from natprec.measurement.sweep import sweep
from natprec.models.segments import SegmentedModel
from natprec.models.weight_sites import find_sites
from natprec.tasks import Samples

FORMATS = tuple(integer(bits, 32) for bits in (4, 6, 8))


def features(model: nn.Module, samples: Samples) -> torch.Tensor:
    """The mean over patches, of length 1."""
    return nn.functional.normalize(model(**samples.tensors).last_hidden_state.mean(1), dim=-1)


def images(count: int, seed: int = 0) -> Samples:
    """16 patches and the token of the class to each."""
    draw = torch.Generator().manual_seed(seed)
    return Samples({"pixel_values": torch.randn(count, 3, 16, 16, generator=draw)}, length=17)


def test_pixels_are_samples_like_any_others() -> None:
    from transformers import ViTConfig, ViTModel

    torch.manual_seed(0)
    config = ViTConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64, image_size=16, patch_size=4
    )
    model = ViTModel(config, add_pooling_layer=False).eval().requires_grad_(False)
    for parameter in model.parameters():
        if parameter.dim() == 2:
            parameter.data.mul_(4)
    segmented = SegmentedModel(model, images(1), FeatureDistance(features))
    sites, many = find_sites(segmented), images(96)
    assert len(segmented.blocks) == 2
    assert len(sites) == 2 * 6
    curves = sweep(
        segmented,
        sites,
        {site.name: FORMATS for site in sites},
        many,
        scale_dtype=torch.float32,
        seed=0,
        rounding="gptq",
    )
    ratios = []
    for site, values in exact_curves(segmented, [(site, FORMATS) for site in sites], many, torch.float32):
        ratios.append(np.log(curves[site.name].kl()[1:] / values.mean(0)[1:]))
        assert (curves[site.name].shares > 0).all()
    assert np.abs(np.median(ratios)) < np.log(1.15)
    assert np.abs(ratios).max() < np.log(2)
