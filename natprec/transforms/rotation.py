"""Rotations that can be folded into a model: its residual stream, and each head of its values.

Channels that are much larger than others make a group's step large for all of it; a random Hadamard matrix mixes them
evenly (QuaRot, Ashkboos et al. 2024, arXiv:2404.00456; SpinQuant, arXiv:2405.16406). Attention sums values over tokens,
so their heads may be turned behind v_proj and back before o_proj, all by one matrix. The input of down_proj cannot: it
is a product of two layers, element by element, and would have to be turned as the model runs, which no checkpoint says.

As gauges are, all of it is tried, not looked up; a rotated model is compared with the original before it is measured.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from natprec.errors import InputError
from natprec.models.layers import change_outputs
from natprec.models.segments import SegmentedModel
from natprec.models.weight_sites import Site, site_layer
from natprec.tasks import Samples
from natprec.transforms.gauges import HEADS, Gauge
from natprec.transforms.hadamard import Rotation
from natprec.transforms.stream import find_stream, turn_stream
from natprec.utils.hooks import attached

LIMIT = 1e-3
"""Of its largest value, what the output may change by, in float32. Arithmetic gives some 1e-6, a mistake tenths."""

SAME = 1e-4
"""The same for the output of one Linear, where sizes of heads are tried."""

CHANGE = "output changes by {:.1e} of its largest value"


def rotated_digest(digest: str, seed: int | None) -> str:
    """Which weights these are after a rotation. Not of the rotated ones: their last bits depend on the machine."""
    return digest if seed is None else hashlib.sha256(f"{digest} rotated {seed}".encode()).hexdigest()[:16]


@torch.no_grad()
def rotate(
    segmented: SegmentedModel, sites: Sequence[Site], gauges: Mapping[str, Gauge], samples: Samples, seed: int
) -> list[str]:
    """Turn what can be turned; weights are replaced, not overwritten.

    Args:
        segmented: the model, in float32 and in memory.
        gauges: where its channels can be rescaled.
        samples: some to try on.
    Returns:
        What was turned and by how much the output changed; what was not and why. A line each.
    Raises:
        InputError: nothing can be turned, or the output changed by more than arithmetic does.
    """
    before = segmented.output(samples)
    heads = find_heads(segmented, sites, gauges, samples)
    notes = []
    if heads:
        change = _proved(segmented, samples, before, lambda: turn_heads(segmented.model, sites, gauges, heads, seed))
        sizes = " or ".join(str(size) for size in sorted(set(heads.values())))
        notes.append(f"rotated the heads of values, parts of {sizes}, at {len(heads)} places; {CHANGE.format(change)}")
    try:
        stream = find_stream(segmented, sites, gauges, samples)
        change = _proved(segmented, samples, before, lambda: turn_stream(segmented.model, stream, seed))
        notes.append(f"rotated the residual stream of {stream.size}; {CHANGE.format(change)}")
    except InputError as refused:
        if not heads:
            raise InputError(f"transforms 'rotate': neither values nor residual stream can be; {refused}") from refused
        notes.append(f"did not rotate the residual stream: {refused}")
    return notes


@torch.no_grad()
def find_heads(
    segmented: SegmentedModel, sites: Sequence[Site], gauges: Mapping[str, Gauge], samples: Samples
) -> dict[str, int]:
    """Fused group → the size of the parts of its input that turn alike: a head, or what divides heads of odd sizes.

    Args:
        samples: a few to try on.
    """
    found: dict[str, int] = {}
    known: dict[str, tuple[int, ...]] = {}  # what the same fused group had in an earlier block
    if not segmented.blocks:
        return found
    hidden, contexts = segmented.prefix(samples)
    for index, name in enumerate(segmented.block_names):
        for fused_group, gauge in gauges.items():
            producer: Tensor = segmented.model.get_submodule(gauge.producer).weight  # type: ignore[assignment]
            if not fused_group.startswith(f"{name}.") or producer.dim() < 2:
                continue
            sizes = known.get(fused_group.removeprefix(name), (gauge.head,) if gauge.head else HEADS)
            expected = _outputs(segmented, fused_group, index, hidden, contexts[index])
            fits = [
                size
                for size in sizes
                if gauge.produced % size == 0
                and _same(segmented, sites, gauges, (fused_group, size), expected, (index, hidden, contexts[index]))
            ]
            known[fused_group.removeprefix(name)] = tuple(fits[:1])
            if fits:
                found[fused_group] = fits[0]
        hidden = segmented.block(index, hidden, contexts[index])
    return found


def turn_heads(
    model: nn.Module, sites: Sequence[Site], gauges: Mapping[str, Gauge], heads: Mapping[str, int], seed: int
) -> None:
    """Turn rows and biases of what produces a fused group's input, and the fused group's columns."""
    for fused_group, size in heads.items():
        rotation = Rotation(size, seed)
        change_outputs(model.get_submodule(gauges[fused_group].producer), partial(rotation.turn, dim=0))
        for layer in (site_layer(model, site) for site in sites if site.fused_group == fused_group):
            layer.put(rotation.turn(layer.matrix.detach(), 1))


def _proved(segmented: SegmentedModel, samples: Samples, before: Tensor, turn: Callable[[], None]) -> float:
    """Turn something, and undo it if the output changes too much.

    Returns:
        The largest change over the largest value.
    Raises:
        InputError: it is above `LIMIT`.
    """
    kept = [(parameter, parameter.data) for parameter in segmented.model.parameters()]
    turn()
    change = float((segmented.output(samples) - before).abs().max() / before.abs().max())
    if not change <= LIMIT:
        for parameter, data in kept:
            parameter.data = data
        raise InputError(
            f"the output changes by {change:.2g} of its largest value (limit {LIMIT:g}): something reads or writes it "
            "that was not found; use --transforms auto"
        )
    return change


def _same(
    segmented: SegmentedModel,
    sites: Sequence[Site],
    gauges: Mapping[str, Gauge],
    head: tuple[str, int],
    expected: Tensor,
    place: tuple[int, Tensor, tuple[tuple[object, ...], dict[str, object]]],
) -> bool:
    """Whether the fused group's output stays when parts of this size are turned; everything is put back."""
    kept = [(parameter, parameter.data) for parameter in segmented.blocks[place[0]].parameters()]
    try:
        turn_heads(segmented.model, sites, gauges, dict([head]), seed=0)
        change = (_outputs(segmented, head[0], *place) - expected).abs().max()
        return bool(change <= SAME * expected.abs().max())
    finally:
        for parameter, data in kept:
            parameter.data = data


def _outputs(
    segmented: SegmentedModel,
    fused_group: str,
    index: int,
    hidden: Tensor,
    context: tuple[tuple[object, ...], dict[str, object]],
) -> Tensor:
    """What the fused group's first Linear returns while a block runs."""
    seen: list[Tensor] = []

    def watch(module: nn.Module, args: object, output: Tensor) -> None:
        seen.append(output)

    with attached([segmented.model.get_submodule(fused_group).register_forward_hook(watch)]):
        segmented.block(index, hidden, context)
    return seen[0]
