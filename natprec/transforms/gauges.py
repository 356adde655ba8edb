"""Gauge symmetries (T10): where a model's channels can be rescaled without changing its function.

The inputs of a layer come from a norm's weight or from the rows of another layer. Dividing these by s and
multiplying the layer's columns by s changes nothing but the grid on which they will be rounded
(SmoothQuant, arXiv:2211.10438; AWQ, arXiv:2306.00978). Which pairs are such is not read from a list of model
names. It is tried: with powers of two for s every product stays exact, so a block that is left unchanged
returns the same bits, and one where something else reads the channels does not.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from natprec.models.layers import change_outputs, layer_of, multiplies
from natprec.models.segments import SegmentedModel
from natprec.models.weight_sites import Site, site_layer
from natprec.tasks import Samples

HEADS = (256, 192, 160, 128, 96, 80, 64, 48, 32, 16, 8)
"""Head sizes that are tried where a layer has fewer outputs than its reader inputs."""


@dataclass(frozen=True)
class Gauge:
    """Channels that can be rescaled.

    Attributes:
        fused_group: the sites whose columns are multiplied by s.
        producer: the norm or layer whose weight (first dimension) and bias are divided by it.
        produced: its number of channels.
        head: 0 where channel c is input c; else the producer's channels are heads of this size, and each
            head is read by several consecutive heads of the inputs (grouped-query attention).
    """

    fused_group: str
    producer: str
    produced: int
    head: int = 0

    def channels(self, columns: int, device: torch.device | None = None) -> Tensor:
        """(columns,): the producer's channel that each input comes from."""
        index = torch.arange(columns, device=device)
        if not self.head:
            return index
        repeats = columns // self.produced
        return index // self.head // repeats * self.head + index % self.head


@torch.no_grad()
def find_gauges(segmented: SegmentedModel, sites: Sequence[Site], samples: Samples) -> dict[str, Gauge]:
    """Every fused group of a block whose inputs can be rescaled.

    Args:
        samples: a few to try on.
    Returns:
        Fused group → gauge.
    """
    found: dict[str, Gauge] = {}
    if not segmented.blocks:
        return found
    hidden, contexts = segmented.prefix(samples)
    known: dict[tuple[str, int], list[tuple[str, int, int]]] = {}  # what the same fused group had in an earlier block
    for index, name in enumerate(segmented.block_names):
        with segmented.hold(index):
            expected = segmented.block(index, hidden, contexts[index])
            for fused_group, members in _fused_groups(segmented, sites, index).items():
                columns = members[0].shape[1]
                own = (fused_group.removeprefix(name), columns)
                possible = list(_candidates(segmented.blocks[index], columns))
                tried = known.get(own, possible)
                known[own] = []
                for producer, produced, head in tried if set(tried) <= set(possible) else possible:
                    gauge = Gauge(fused_group, f"{name}.{producer}", produced, head)
                    with rescaled(segmented.model, gauge, members):
                        same = torch.equal(segmented.block(index, hidden, contexts[index]), expected)
                    if same:
                        found[fused_group] = gauge
                        known[own] = [(producer, produced, head)]
                        break
        hidden = expected
    return found


def fold(model: nn.Module, gauge: Gauge, scale: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Divide the producer's channels by `scale` (channels,); weights are replaced, not overwritten.

    Args:
        dtype: in which a norm will be stored. Its weight is rounded to that.
    Returns:
        (channels,), by what the channels were really divided, so that rounding the norm costs nothing.
    """
    producer = model.get_submodule(gauge.producer)
    weight: Tensor = producer.weight  # type: ignore[assignment]
    if weight.dim() == 1:
        stored = (weight.data / scale).to(dtype).to(weight.dtype)
        scale = torch.where(stored * weight.data > 0, weight.data / stored, torch.ones_like(scale))
    change_outputs(producer, lambda outputs: outputs / scale.view(-1, *[1] * (outputs.dim() - 1)))
    return scale


def _fused_groups(segmented: SegmentedModel, sites: Sequence[Site], index: int) -> dict[str, list[Site]]:
    """The fused groups of a block that were reached; none where another layer was not: it might read the same channels.

    An expert that was not reached reads what the others read.
    """
    name, reached, routing = segmented.block_names[index], segmented.probe.input_of, segmented.routing
    layers = [f"{name}.{child}" for child, module in segmented.blocks[index].named_modules() if multiplies(module)]
    like = {routing.alike(layer) for layer in reached if layer in routing.containers}
    if not all(each in reached or (each in routing.containers and routing.alike(each) in like) for each in layers):
        return {}
    fused_groups: dict[str, list[Site]] = {}
    for site in sites:
        if site.segment == index and site.role == "linear" and len(site.uses) == 1 and site.name in reached:
            fused_groups.setdefault(site.fused_group, []).append(site)
    return fused_groups


def _candidates(block: nn.Module, columns: int) -> Iterator[tuple[str, int, int]]:
    """Norms, then layers with as many outputs, then layers with fewer, which are heads of some size."""
    produced: dict[str, tuple[int, ...]] = {}
    for name, module in block.named_modules():
        layer, weight = layer_of(module), getattr(module, "weight", None)
        if layer is not None or isinstance(weight, Tensor):
            produced[name] = tuple(weight.shape) if layer is None else layer.shape  # type: ignore[union-attr]
    for name in sorted(produced, key=lambda name: len(produced[name])):
        if produced[name][0] == columns:
            yield name, columns, 0
    for head in HEADS:
        for name, shape in produced.items():
            if shape[0] < columns and columns % shape[0] == 0 and shape[0] % head == 0:
                yield name, shape[0], head


@contextlib.contextmanager
def rescaled(model: nn.Module, gauge: Gauge, members: Sequence[Site]) -> Iterator[None]:
    """Rescale by powers of two, which is exact, and put everything back."""
    modules = [model.get_submodule(site.name) for site in members] + [model.get_submodule(gauge.producer)]
    kept = [(parameter, parameter.data) for module in modules for parameter in module.parameters(recurse=False)]
    exponents = torch.randint(-3, 4, (gauge.produced,), generator=torch.Generator().manual_seed(gauge.produced))
    scale = torch.exp2(exponents.float()).to(kept[0][1].device)
    columns = scale[gauge.channels(members[0].shape[1])]
    try:
        for site in members:
            layer = site_layer(model, site)
            layer.put(layer.matrix.detach() * columns)
        fold(model, gauge, scale)
        yield
    finally:
        for parameter, data in kept:
            parameter.data = data
