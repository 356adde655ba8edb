"""A part of a pipeline of diffusers as a subject: its network is measured on what the pipeline gives it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import nn
from torch.utils._pytree import tree_leaves

from natprec.data.prompts import Asked
from natprec.data.steps import learn_calls
from natprec.distortions.component import ComponentDistance
from natprec.errors import ModelError
from natprec.measurement.beside import other_bytes, other_entries
from natprec.measurement.subject import Subject
from natprec.models.devices import usable_device
from natprec.models.leftovers import HALF, exceptions, stored_dtypes, whole_vectors
from natprec.models.loading import check_finite, choose_storage_dtype, model_digest
from natprec.models.pipeline_loading import load_pipeline, stored_types
from natprec.models.pipelines import PipelineFolder
from natprec.models.segments import SegmentedModel
from natprec.models.weight_sites import Site, find_sites
from natprec.models.weights import InMemory
from natprec.tasks.diffusion import PipelinePart
from natprec.utils.matmul import arithmetic
from natprec.utils.records import public_name


@dataclass(frozen=True)
class Wanted:
    """Which part of which pipeline, and how it is to be run.

    Attributes:
        steps, size: of denoising, and of a side of an image in pixels; None: the pipeline's own.
    """

    folder: PipelineFolder
    component: str
    asked: Asked
    steps: int | None = None
    size: int | None = None


def subject_of_component(
    wanted: Wanted,
    *,
    device: str = "cpu",
    products: str = "auto",
    trust_remote_code: bool = False,
    given: Mapping[str, nn.Module] | None = None,
) -> Subject:
    """Load the pipeline, see how it calls the part, and find the sites of that.

    Args:
        given: parts that are there already, in place of what lies in the folder.
    Raises:
        ModelError: the pipeline cannot be loaded or does not run; NaN or Inf in a weight; no layer with a matrix.
    """
    target = usable_device(device)
    folder, name = wanted.folder, wanted.component
    pipeline = load_pipeline(folder, trust_remote_code, target, given)
    network: nn.Module = getattr(pipeline, name)
    check_finite(network)
    part = PipelinePart(name, pipeline, wanted.asked, wanted.steps, wanted.size)
    part.calls = learn_calls(part)
    common, dtypes = stored_dtypes(network, stored_types(folder, name))
    weights = InMemory()
    dtype = choose_storage_dtype(common if common in HALF else None, network, weights)
    weights.dtypes = exceptions(common, dtypes, dtype) | whole_vectors(part, common, dtypes, network)
    with torch.no_grad():
        count = len(part.returned(network, part.calls.shown))
    segmented = SegmentedModel(
        network, part.calls.shown, ComponentDistance(part, count), weights,
        arithmetic(products, target), convolutions=True,
    )  # fmt: skip
    if segmented.blocks and _conditioned(segmented):
        segmented.blocks, segmented.block_names = [], []
    sites = [replace(site, by_sample=_by_sample(site, segmented)) for site in find_sites(segmented)]
    if not sites:
        raise ModelError(f"component {name!r} ({type(network).__name__}) has no layer with a matrix to quantize")
    return Subject(
        name=f"{public_name(folder.folder)}/{name}",
        model=network,
        tokenizer=part,
        storage_dtype=dtype,
        segmented=segmented,
        sites=sites,
        digest=model_digest(network, weights),
        other_bytes=other_bytes(network, sites, weights.dtypes),
        carried_bytes=pipeline_bytes(folder, name) + other_entries(network, sites),
        task=part,
        trusted=trust_remote_code,
    )


def _conditioned(segmented: SegmentedModel) -> bool:
    """Whether blocks are given numbers beside the hidden state, such as an embedded timestep.

    On the way back no gradient would come to what made these, so such a part is run as a whole.
    """
    with torch.no_grad():
        _, contexts = segmented.prefix(segmented.shown)
    return any(isinstance(each, torch.Tensor) and each.is_floating_point() for each in tree_leaves(contexts))


def _by_sample(site: Site, segmented: SegmentedModel) -> bool:
    """Whether a Linear reads a timestep, a class or a pooled text: a modulation, say, of all positions alike."""
    return segmented.shown.length > 1 and all(segmented.probe.rows.get(use) == 1 for use in site.uses)


def pipeline_bytes(folder: PipelineFolder, component: str) -> int:
    """Bytes of a pipeline's files without the weights of one part."""
    own = set(folder.weight_files(component))
    return sum(file.stat().st_size for file in carried_files(folder) if file not in own)


def carried_files(folder: PipelineFolder) -> list[Path]:
    """The files of a pipeline that belong to it: its index, and all in the folders of its parts."""
    inside = [file for name in folder.parts for file in sorted((folder.folder / name).rglob("*")) if file.is_file()]
    beside = [file for file in sorted(folder.folder.iterdir()) if file.is_file() and file.suffix in (".json", ".py")]
    return [*beside, *inside]
