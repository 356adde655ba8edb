"""A module of torch as a subject: no checkpoint, no tokenizer, its own samples; convolutions are sites too."""

from __future__ import annotations

import torch
from torch import nn

from natprec.distortions import OUTPUT, Distortion
from natprec.errors import InputError
from natprec.measurement.beside import other_bytes, other_entries
from natprec.measurement.subject import Subject
from natprec.models.loading import check_finite, choose_storage_dtype, model_digest
from natprec.models.segments import SegmentedModel
from natprec.models.weight_sites import find_sites
from natprec.models.weights import InMemory
from natprec.tasks import Samples
from natprec.tasks.module import AnyModule
from natprec.utils.matmul import arithmetic

ENGINE = "natprec"
"""The profile whose formats convolutions have."""


def subject_of_module(
    module: nn.Module,
    samples: Samples,
    distortion: Distortion | None = None,
    name: str | None = None,
    products: str = "auto",
) -> Subject:
    """A module that is there already; it is set to eval and float32, its weights stay as they are.

    Args:
        samples: inputs by the names of its arguments.
        distortion: default: the mean squared difference of outputs, `natprec.distortions.OUTPUT`.
        products: what they are computed in where the module runs for statistics: a name in `ARITHMETIC`.
    Raises:
        InputError: a distortion for a kind of model.
        ModelError: no layer with a matrix, or NaN or Inf in a weight.
    """
    distortion = distortion or OUTPUT
    if distortion.task is not None:
        raise InputError(
            f"distortion {distortion.name!r} is for {distortion.task.noun}; give one of your own for a module, "
            "such as natprec.FeatureDistance"
        )
    declared = next((each.dtype for each in module.parameters()), None)
    module.eval().requires_grad_(False).float()
    check_finite(module)
    task, weights = AnyModule(samples), InMemory()
    dtype = choose_storage_dtype(declared, module, weights)
    device = next((each.device for each in module.parameters()), torch.device("cpu"))
    segmented = SegmentedModel(
        module, task.probe(module), distortion, weights, arithmetic(products, device), task.convolutions
    )
    sites = find_sites(segmented)
    return Subject(
        name=name or type(module).__name__,
        model=module,
        tokenizer=None,
        storage_dtype=dtype,
        segmented=segmented,
        sites=sites,
        digest=model_digest(module, weights),
        other_bytes=other_bytes(module, sites, {}),
        carried_bytes=other_entries(module, sites),
        task=task,
    )
