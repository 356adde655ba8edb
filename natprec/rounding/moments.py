"""What rounding needs of a segment's text: Σ x xᵀ of its layers' inputs, and Σ g gᵀ of the gradients at their outputs.

Of a convolution it is the patches of its input that are gathered, and no gradients; of an embedding, whose rows are
looked up, the gradients at what it puts out, in place of inputs (see `natprec.measurement.lookups`).

Both are gathered in one run on what the rounded prefix produces. The gradient that enters a block at its output is the
original model's, from one way forward and back before anything is rounded; the blocks' Jacobians of the unrounded
block turn it into those of its layers.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from natprec.measurement.block_inputs import BlockInputs
from natprec.measurement.forward import forward_blocks
from natprec.measurement.lookups import add_gradients, own_lookups
from natprec.measurement.sweep import backward, watched
from natprec.models.hidden_states import HiddenStates
from natprec.models.patches import add_moments
from natprec.models.segments import SegmentedModel
from natprec.models.weight_sites import Site, site_layer
from natprec.quantizers.gram import add_named, mirrored
from natprec.rounding.together import owners, sums_at_owners
from natprec.utils.hooks import attached
from natprec.utils.progress import Advance

SEED = 0
"""Of the signs that the distortion draws."""

SUMS = torch.float64
"""In which moments are added up, and sent: of float32 the order of batches, and with it the number of processes, would
choose some codes."""


@dataclass
class Moments:
    """Of one segment.

    Attributes:
        inputs: fused group → Σ x xᵀ, `Layer.moments`; of an embedding Σ g gᵀ, (columns, columns).
        outputs: site → (rows, rows), Σ g gᵀ; of Linears that gradients reach, if gathered at all.
        elsewhere: fused groups whose moments another process has, and that process's rank.
    """

    inputs: dict[str, Tensor] = field(default_factory=dict)
    outputs: dict[str, Tensor] = field(default_factory=dict)
    elsewhere: dict[str, int] = field(default_factory=dict)

    def rescale_outputs(self, name: str, scale: Tensor) -> None:
        """Account for outputs of a layer that are divided by `scale` (rows,) from now on."""
        if name in self.outputs:
            self.outputs[name] = self.outputs[name] * scale * scale.unsqueeze(1)


class Gradients:
    """Of the original model's distortion, at the outputs of its blocks; made before anything is rounded.

    They take as much memory, or disk, as the inputs of all blocks do while they are made.

    Attributes:
        lookups: embedding → Σ g gᵀ at what it puts out, of this process's samples, on and above the diagonal.
    """

    @torch.enable_grad()
    def __init__(
        self,
        segmented: SegmentedModel,
        states: HiddenStates,
        advance: Advance = lambda step: None,
        *,
        lookups: Sequence[Site] = (),
        blocks: bool = True,
    ) -> None:
        """Go through the model and back.

        Args:
            lookups: embeddings to go all the way back to; an earlier run's are gathered anew.
            blocks: whether to keep those of blocks, from the first one that an earlier run has not passed.
        """
        last, first = len(segmented.blocks), 0 if states.reached is None else states.reached + 1
        first = first if blocks else last
        self._kept, self.lookups = BlockInputs(), dict[str, Tensor]()
        watching = {site.name: _Lookups(site, self.lookups) for site in lookups}
        if first >= last and not watching:
            return
        with segmented.gathering():
            inputs, contexts = forward_blocks(segmented, states.samples, last, advance)
        gradient = None
        for segment in range(last, -2 if watching else first, -1):
            with segmented.hold(segment), watched(segmented, watching, segment):
                gradient = backward(
                    segmented, watching, {}, segment, inputs, contexts, states.samples, gradient, SEED, advance,
                    segmented.gathering, numbers=states.share.numbers,
                )  # fmt: skip
            if inputs:
                inputs.pop()
            if segment <= first:
                continue
            assert gradient is not None
            if self._kept:
                self._kept.push(gradient)
            else:
                self._kept = BlockInputs.suited(gradient, last - first, None)

    def pop(self) -> Tensor | None:
        """At the output of the next block, (sequences, time, hidden); after the last one None."""
        if not self._kept:
            return None
        gradient = self._kept[len(self._kept) - 1]
        self._kept.pop()
        return gradient


class _Lookups:
    """An `Observer` of an embedding."""

    def __init__(self, site: Site, sums: dict[str, Tensor]) -> None:
        self.site, self._sums, self.sequences = site, sums, range(0)

    def attach(self, module: nn.Module) -> list[Any]:
        """See `Observer`."""
        return [module.register_forward_hook(self._watch)]

    def flush(self) -> None:
        """Nothing waits for the batch's end."""

    def _watch(self, _: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        own = own_lookups(args[0], output, len(self.sequences))[1]
        own.register_hook(self._add)
        return own

    def _add(self, gradient: Tensor) -> None:
        for own in gradient.reshape(len(gradient), -1, gradient.shape[-1]):
            add_gradients(self._sums, self.site.name, own)


def segment_moments(
    segmented: SegmentedModel,
    members: Sequence[Site],
    states: HiddenStates,
    segment: int,
    gradients: Gradients | None,
    advance: Advance = lambda step: None,
    lookups: Mapping[str, Tensor] | None = None,
) -> Moments:
    """Gather the moments of a segment that the states have come to; of several processes each has some of the sums.

    Args:
        members: sites that the segment rounds.
        gradients: to gather those of outputs too; call it for one block after the other then.
        lookups: see `Gradients`; of members that are looked up.
    """
    moments = Moments({site.name: lookups[site.name] for site in members if lookups and site.name in lookups})
    given = [site for site in members if not site.looked_up]
    gradient = gradients.pop() if gradients is not None and 0 <= segment < len(segmented.blocks) else None
    layers = [site for site in members if site.role == "linear"] if gradients is not None and segmented.blocks else []
    if not members:
        return moments
    with _gathering(segmented.model, given, layers, moments):
        if layers:
            states.back(segment, gradient, SEED, advance)
        elif given:
            with segmented.gathering():
                states.show(segment, [use for site in given for use in site.uses], advance)
    _at_owners(segmented, members, moments)
    for sums in (moments.inputs, moments.outputs):
        sums.update({name: mirrored(upper) for name, upper in sums.items()})
    return moments


def _at_owners(segmented: SegmentedModel, members: Sequence[Site], moments: Moments) -> None:
    """Leave each process the sums of the fused groups that it rounds, of all processes' samples."""
    workers = segmented.workers
    if workers.size == 1:
        return
    owner, groups = owners(segmented, members), {site.name: site.fused_group for site in members}
    sizes = {site.name: site_layer(segmented.model, site).shape for site in members}
    like = site_layer(segmented.model, members[0]).weight.new_empty(0, dtype=SUMS)
    columns = {site.fused_group: site_layer(segmented.model, site).moments for site in members}
    rows = {name: (size[0],) * 2 for name, size in sizes.items()}
    moments.inputs, reached = sums_at_owners(workers, moments.inputs, columns, owner, like)
    moments.outputs, _ = sums_at_owners(
        workers, moments.outputs, rows, {name: owner[group] for name, group in groups.items()}, like
    )
    moments.elsewhere = {group: owner[group] for group in columns if group in reached and owner[group] != workers.rank}


@contextlib.contextmanager
def _gathering(model: nn.Module, members: Sequence[Site], layers: Sequence[Site], moments: Moments) -> Iterator[None]:
    """Sum the products of inputs of all members, and of the gradients at the outputs of `layers`.

    Sites of one fused group share their input, so its first site gathers.
    """

    def input_hook(site: Site) -> Callable[..., None]:
        layer = site_layer(model, site)

        def hook(_: nn.Module, args: tuple[Tensor, ...]) -> None:
            add_moments(moments.inputs, site.fused_group, layer, args[0].detach(), SUMS)

        return hook

    def output_hook(name: str) -> Callable[..., None]:
        def hook(_: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
            if output.requires_grad:
                output.register_hook(lambda gradient: add_named(moments.outputs, name, gradient.flatten(0, -2), SUMS))

        return hook

    firsts = {site.fused_group: site for site in reversed(members)}
    handles = [
        model.get_submodule(use).register_forward_pre_hook(input_hook(site))
        for site in firsts.values()
        for use in site.uses
    ]
    handles += [
        model.get_submodule(use).register_forward_hook(output_hook(site.name)) for site in layers for use in site.uses
    ]
    with attached(handles):
        yield
