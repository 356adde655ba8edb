"""Sites that are no weights: inputs of Linears, the residual stream, keys and values.

Linears of one fused group share their input, so a fused group has one: `GROUP:input`. The stream is taken where it
enters a block, `BLOCK:stream`. Keys and values are found by watching who calls transformers' attention interface:
`ATTENTION:key`, `ATTENTION:value`. Inputs of experts are none: transformers, whose experts are one parameter, would not
round them.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from natprec.formats import (
    CHANNEL,
    FP8_TENSOR,
    EngineProfile,
    Format,
    Granularity,
    PerFeature,
    PerGroup,
    PerHead,
    PerToken,
    activation,
)
from natprec.models.attention import AttentionHook
from natprec.models.layers import multiplies
from natprec.models.segments import SegmentedModel
from natprec.models.weight_sites import Site
from natprec.quantizers.activations import fixed_scale, round_activations
from natprec.tasks import Samples
from natprec.utils.hooks import attached

WIDTHS = range(3, 9)
"""Measured of every activation, whatever the engine runs: b* is a property of the model."""

GROUPED_WIDTHS = (4, 8)
"""Measured also with one scale per group of a token, and with a fixed one per feature."""


def find_activations(segmented: SegmentedModel, sites: Sequence[Site], samples: Samples, cached: bool) -> list[Site]:
    """The activations of a model, in the order of its segments.

    Args:
        sites: its weights.
        samples: a few to try on.
        cached: whether it keeps keys and values.
    """
    found = [
        Site(f"{name}:stream", "activation", "stream", (1, size), (name,), f"{name}:stream", segment)
        for segment, (name, size) in enumerate(_streams(segmented, samples))
    ]
    fused_groups: dict[str, list[Site]] = {}
    for site in sites:
        if site.role == "linear" and site.name in segmented.probe.input_of and not site.experts:
            fused_groups.setdefault(site.fused_group, []).append(site)
    for fused_group, members in fused_groups.items():
        uses = tuple(use for member in members for use in member.uses)
        shape = (1, members[0].shape[1])
        found.append(Site(f"{fused_group}:input", "activation", "linear", shape, uses, fused_group, members[0].segment))
    for name, (keys, values) in (_attentions(segmented, samples) if cached else {}).items():
        segment = segmented.segment_of(name + ".")
        for site_kind, shape in (("key", keys), ("value", values)):
            site_name = f"{name}:{site_kind}"
            found.append(Site(site_name, site_kind, "cache", shape, (name,), site_name, segment))  # type: ignore[arg-type]
    return sorted(found, key=lambda site: site.segment)


def activation_formats(
    site: Site, group_size: int | None, full_range: bool = False, profile: EngineProfile | None = None
) -> tuple[Format, ...]:
    """What is measured at a site: one scale per token, or per head of a key or value; float8 too in a cache.

    Inputs of Linears are also measured with fixed scales per feature, which no engine multiplies: what they cost beside
    scales per token says what outlying features do.

    Args:
        group_size: of the weights; inputs of Linears are measured with that as well, where it divides them.
        full_range: the engine's rule for scales.
        profile: of an engine whose floating-point formats are measured too, beside float8 in a cache.
    """
    floats = [] if profile is None else _floats(site, profile)
    if site.role == "cache":
        own = [activation(bits, PerGroup(site.shape[1]), full_range) for bits in WIDTHS]
        return (*own, FP8_TENSOR, *(fmt for fmt in floats if fmt != FP8_TENSOR and fmt.divides(site.shape[1])))
    formats = [activation(bits, PerToken(), full_range) for bits in WIDTHS]
    if site.role == "linear":
        by: list[Granularity] = [] if group_size is None or group_size == CHANNEL else [PerGroup(group_size)]
        formats += [activation(bits, each, full_range) for each in (*by, PerFeature()) for bits in GROUPED_WIDTHS]
    return tuple(fmt for fmt in (*formats, *floats) if fmt.divides(site.shape[1]))


def _floats(site: Site, profile: EngineProfile) -> list[Format]:
    """The floating-point formats of an engine that a site may have."""
    if site.role == "cache":
        patterns = profile.formats.get("cache", ())
    else:
        patterns = tuple(each.inputs for each in profile.pairings) if site.role == "linear" else ()
    found = [fmt for pattern in patterns for fmt in pattern.at((site.shape[1],)) if fmt.floating]
    return list(dict.fromkeys(found))


def round_input(module: nn.Module, fmt: Format, scale: Tensor | None = None, part: float = 1.0) -> Any:
    """From now on a module computes with its first argument rounded; returns what `remove()` undoes it.

    Args:
        scale: what the format fixes; default: found in each batch.
        part: how much of the rounding's error to make.
    """

    def hook(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        if not multiplies(module) and "forward" in vars(module):  # a block that is only passed through
            return args
        return (_moved(args[0], round_activations(args[0], fmt, scale), part), *args[1:])

    return module.register_forward_pre_hook(hook)


def round_states(
    module: nn.Module,
    fmt: Format,
    kinds: Sequence[str] = ("key", "value"),
    scale: Tensor | None = None,
    part: float = 1.0,
) -> AttentionHook:
    """The same for the keys or values, or both, of an attention module.

    Args:
        scale: the fixed one, or (heads, 1, 1); default: found in each batch.
        part: how much of the rounding's error to make.
    """

    def hook(_: nn.Module, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        return (
            _moved(key, rounded_states(key, fmt, scale), part) if "key" in kinds else key,
            _moved(value, rounded_states(value, fmt, scale), part) if "value" in kinds else value,
        )

    return AttentionHook(module, hook)


def _moved(values: Tensor, rounded: Tensor, part: float) -> Tensor:
    """So much of the way from values to what they are rounded to; all of it is what an engine computes with."""
    return rounded if part == 1.0 else values + part * (rounded - values)


def rounded_states(states: Tensor, fmt: Format, scale: Tensor | None = None) -> Tensor:
    """Keys or values (batch, heads, time, size) as a cache keeps them; `scale` as for `round_states`."""
    if scale is None and fmt.scaling.granularity == PerHead():
        return round_activations(states, fmt, fixed_scale(fmt, states.abs().amax((0, 2, 3)).view(-1, 1, 1)))
    return round_activations(states, fmt, scale)


def scale_made_for(fmt: Format, largest: float | Sequence[float] | None, device: torch.device) -> Tensor | None:
    """A format's fixed scale for a magnitude, or (heads, 1, 1) for that of each head; None: found in each batch."""
    if not fmt.fixed or largest is None:
        return None
    reach = torch.tensor(largest, device=device)
    return fixed_scale(fmt, reach.view(-1, 1, 1) if reach.dim() else reach)


def round_site(
    model: nn.Module, site: Site, fmt: Format, largest: float | Sequence[float] | None = None, part: float = 1.0
) -> list[Any]:
    """Round an activation wherever it is used; returns the hooks, to remove.

    Args:
        largest: magnitude that a fixed scale is made for, or of each head; default: that of each batch.
        part: how much of the rounding's error to make.
    """
    modules = [model.get_submodule(use) for use in site.uses]
    scale = scale_made_for(fmt, largest, next(model.parameters()).device)
    if site.role == "cache":
        return [round_states(module, fmt, (site.kind,), scale, part) for module in modules]
    return [round_input(module, fmt, scale, part) for module in modules]


def round_inputs(
    model: nn.Module,
    sites: Iterable[Site],
    inputs: Mapping[str, Format],
    largest: Mapping[str, float | None] | None = None,
    part: float = 1.0,
) -> list[Any]:
    """Round what Linears read, by the fused group that they belong to; returns the hooks, to remove.

    Args:
        sites: activations, of which the inputs of Linears are taken.
        inputs: fused group → format; those of other fused groups stay as they are.
        largest: fused group → magnitude that fixed scales are made for; default: that of each batch.
        part: how much of the rounding's error to make.
    """
    linears = [site for site in sites if site.role == "linear" and site.fused_group in inputs]
    reach = largest or {}
    return [
        hook
        for site in linears
        for hook in round_site(model, site, inputs[site.fused_group], reach.get(site.fused_group), part)
    ]


@contextlib.contextmanager
def rounded(model: nn.Module, site: Site, fmt: Format) -> Iterator[None]:
    """Within the block every use of the activation computes with its rounded values."""
    with attached(round_site(model, site, fmt)):
        yield


@torch.no_grad()
def _streams(segmented: SegmentedModel, samples: Samples) -> list[tuple[str, int]]:
    """Each block's name and the features of its input."""
    if not segmented.blocks:
        return []
    size = segmented.prefix(samples)[0].shape[-1]
    return [(name, size) for name in segmented.block_names]


@torch.no_grad()
def _attentions(segmented: SegmentedModel, samples: Samples) -> dict[str, tuple[tuple[int, int], tuple[int, int]]]:
    """Modules that hand keys and values to the attention interface: (heads, head size) of both."""
    seen: dict[nn.Module, tuple[tuple[int, int], tuple[int, int]]] = {}

    def note(module: nn.Module, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        seen[module] = (key.shape[1], key.shape[3]), (value.shape[1], value.shape[3])
        return key, value

    with attached([AttentionHook(module, note) for module in segmented.model.modules()]):
        segmented.output(samples)
    return {name: seen[module] for name, module in segmented.model.named_modules() if module in seen}
