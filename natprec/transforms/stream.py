"""The residual stream of a decoder turned by an orthogonal matrix, folded into its weights.

Between blocks a hidden state x may be xQ if everything that writes to it writes xQ and everything that reads it reads
through Qᵀ (SliceGPT, Ashkboos et al. 2024, arXiv:2401.15024; QuaRot, arXiv:2404.00456). What reads is an RMSNorm:
‖xQ‖ = ‖x‖, so it commutes with Q once its weight has gone into the Linears behind it. What is turned: the embedding's
columns, the columns of all Linears behind a norm, rows and biases of blocks' other Linears that are as wide as the
stream, the head's columns.

Which norm feeds which Linears is found by trying (see `gauges`), whether a norm commutes with Q too, and whether the
whole is still the same function is the caller's to try. A LayerNorm, which subtracts the mean, does not commute.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from natprec.errors import InputError
from natprec.models.layers import change_outputs, known_layer, layer_of, multiplies
from natprec.models.segments import SegmentedModel
from natprec.models.weight_sites import Site, site_layer
from natprec.tasks import Samples
from natprec.transforms.gauges import Gauge, rescaled
from natprec.transforms.hadamard import Rotation

COMMUTES = 1e-4
"""Of its largest output, what a norm in float32 may differ by when its input is turned; a mean gives some tenths."""

REMEDY = "use --transforms auto"


@dataclass(frozen=True)
class Stream:
    """What has to change for the residual stream to be turned; names of modules.

    Attributes:
        size: of the hidden state.
        folded: norm → the Linears that read it and get its weight.
        embeddings: turned along their columns; a tied head with them.
        writers: turned along their rows, with their biases.
    """

    size: int
    folded: dict[str, tuple[str, ...]]
    embeddings: tuple[str, ...]
    writers: tuple[str, ...]

    @property
    def readers(self) -> list[str]:
        """Linears behind norms, turned along their columns."""
        return [name for readers in self.folded.values() for name in readers]


@torch.no_grad()
def find_stream(
    segmented: SegmentedModel, sites: Sequence[Site], gauges: Mapping[str, Gauge], samples: Samples
) -> Stream:
    """Norms, readers and writers of a model in float32.

    Args:
        samples: a few to try on.
    Raises:
        InputError: the stream cannot be turned; says why, and what to do instead.
    """
    model = segmented.model
    head = getattr(model, "get_output_embeddings", lambda: None)()
    if not segmented.blocks or head is None:
        raise InputError(f"{type(model).__name__} is no decoder of blocks with an output head; {REMEDY}")
    size = head.weight.shape[1]
    folded = _block_norms(segmented, sites, gauges, size)
    inside = {id(module) for block in segmented.blocks for module in block.modules()}
    outside = {name: module for name, module in model.named_modules() if id(module) not in inside}
    embeddings = tuple(name for name, module in outside.items() if _looks_up(module, size))
    norms = [name for name, module in outside.items() if _is_norm(module, size)]
    tied = any(outside[name].weight is head.weight for name in embeddings)
    head_site = next((site for site in sites if site_layer(model, site).weight is head.weight), None)
    for name in norms:
        if not tied and head_site is not None and _feeds(segmented, name, head_site, samples):
            folded[name] = (head_site.name,)
        elif not _constant(outside[name]):
            weight = _weight(outside[name]).float()
            between = "between them " if tied else ""
            raise InputError(
                f"{'embedding and head are one tensor, and ' if tied else ''}norm {name!r} {between}has weights from "
                f"{weight.min():.3g} to {weight.max():.3g}, which no Linear of its own can take; {REMEDY}"
                + (", or give an untied copy" if tied else "")
            )
    rotation = Rotation(size)
    for name in [*folded, *norms]:
        if not _commutes(model.get_submodule(name), rotation):
            raise InputError(
                f"norm {name!r} is no RMSNorm (it subtracts the mean, adds a bias or adds to its weight), so that it "
                f"does not commute with a rotation; {REMEDY}"
            )
    readers = {reader for names in folded.values() for reader in names}
    writers = tuple(
        f"{block_name}.{name}"
        for block_name, block in zip(segmented.block_names, segmented.blocks, strict=True)
        for name, module in block.named_modules()
        if multiplies(module) and known_layer(module).shape[0] == size and f"{block_name}.{name}" not in readers
    )
    return Stream(size, folded, embeddings, writers)


@torch.no_grad()
def turn_stream(model: nn.Module, stream: Stream, seed: int) -> None:
    """Fold the norms and turn everything; weights are replaced, not overwritten."""
    rotation = Rotation(stream.size, seed)
    for norm, readers in stream.folded.items():
        scale = _weight(model.get_submodule(norm)).data
        for name in readers:
            layer = known_layer(model.get_submodule(name))
            layer.put(rotation.turn(layer.matrix.detach() * scale, 1))
        _weight(model.get_submodule(norm)).data = torch.ones_like(scale)
    for name in stream.embeddings:
        layer = known_layer(model.get_submodule(name))
        layer.put(rotation.turn(layer.matrix.detach(), 1))
    for name in stream.writers:
        change_outputs(model.get_submodule(name), partial(rotation.turn, dim=0))


def _block_norms(
    segmented: SegmentedModel, sites: Sequence[Site], gauges: Mapping[str, Gauge], size: int
) -> dict[str, tuple[str, ...]]:
    """Norm of a block → its readers.

    Raises:
        InputError: a block has none whose readers are known.
    """
    found: dict[str, tuple[str, ...]] = {}
    for fused_group, gauge in gauges.items():
        members = [site for site in sites if site.fused_group == fused_group]
        if _is_norm(segmented.model.get_submodule(gauge.producer), size) and members[0].shape[1] == size:
            found[gauge.producer] = tuple(site.name for site in members)
    for name, block in zip(segmented.block_names, segmented.blocks, strict=True):
        for child, module in block.named_modules():
            if _is_norm(module, size) and f"{name}.{child}" not in found:
                raise InputError(
                    f"the weight of norm '{name}.{child}' cannot be folded: it feeds several fused groups of Linears "
                    f"(a router, the stream itself), or is no plain factor; {REMEDY}"
                )
        if not any(norm.startswith(f"{name}.") for norm in found):
            raise InputError(f"block {name!r} has no norm of {size} channels before its Linears; {REMEDY}")
    return found


def _weight(module: nn.Module) -> Tensor:
    return module.weight  # type: ignore[return-value]


def _looks_up(module: nn.Module, size: int) -> bool:
    layer = layer_of(module)
    return layer is not None and layer.kind.looks_up and layer.shape[1] == size


def _is_norm(module: nn.Module, size: int) -> bool:
    weight = getattr(module, "weight", None)
    return isinstance(weight, Tensor) and weight.dim() == 1 and len(weight) == size


def _constant(norm: nn.Module) -> bool:
    weight = _weight(norm)
    return bool((weight == weight[0]).all())


def _feeds(segmented: SegmentedModel, norm: str, head: Site, samples: Samples) -> bool:
    """Whether a norm outside of blocks feeds the head and nothing else: see `gauges`."""
    expected = segmented.output(samples)
    with rescaled(segmented.model, Gauge(head.fused_group, norm, head.shape[1]), [head]):
        return torch.equal(segmented.output(samples), expected)


def _commutes(norm: nn.Module, rotation: Rotation) -> bool:
    """Whether a norm turns as its input does when all its weights are one; tried on vectors with a mean."""
    weight = _weight(norm)
    kept, weight.data = weight.data, torch.ones_like(weight.data)
    draw = torch.Generator().manual_seed(rotation.size)
    inputs = (1 + torch.randn(4, rotation.size, generator=draw)).to(weight.device, weight.dtype)
    try:
        expected = rotation.turn(norm(inputs), 1)
        return bool((norm(rotation.turn(inputs, 1)) - expected).abs().max() <= COMMUTES * expected.abs().max())
    finally:
        weight.data = kept
