"""Sites: the tensors of a model whose precision is measured.

A site is a tensor in the computation, not a module: a tied embedding and head are one site with
two uses. Sites that an engine runs as one matrix (q/k/v, gate/up) form one fused group and get one
format; they are found by structure: Linears of one parent module that were called with one same tensor.
What routes tokens to experts is no site: see `natprec.models.routing`.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from torch import Tensor, nn

from natprec.errors import InputError, ModelError
from natprec.formats import CHANNEL, EngineProfile, Format
from natprec.models.layers import Layer, known_layer, layer_of, multiplies
from natprec.models.segments import SegmentedModel
from natprec.quantizers.hessian import DAMPING, LOOKUP_DAMPING
from natprec.utils.schema import Called, Positive, Within, written

Kind = Literal["weight", "activation", "key", "value"]
Role = Literal["linear", "convolution", "embedding", "head", "stream", "cache"]

WIDE = 8
"""Bits at which an embedding loses so little to nearest that no way back through the model is gone for it."""


@dataclass(frozen=True)
class Site:
    """One tensor whose precision is measured.

    Attributes:
        name: the module that owns it; for a tied weight, the embedding.
        kind: what the tensor is; the sweep has an observer for each kind.
        role: how an engine uses it, which decides the formats that exist for it.
        shape: of a weight: (rows, columns) = (outputs, inputs); of a token's activation (1, features), of its
            keys or values (heads, head size).
        uses: names of all modules that use the tensor: two for a tied embedding, several for a shared Linear.
        fused_group: name of the first site of the fused group, which shares one format.
        segment: where its last use stands in the order of the backward sweep: -1 for the prefix, the
            block's index, or the number of blocks for the suffix.
        experts: of an expert's weight, the module that holds all experts of its layer; else empty.
        by_sample: whether it is given one row for each sample, of what that is conditioned by, and not one for each
            position: too few to fit GPTQ to.
    """

    name: str
    kind: Kind
    role: Role
    shape: tuple[Positive, Positive]
    uses: tuple[str, ...]
    fused_group: Annotated[str, Called("unit")]
    segment: Annotated[int, Within(-1), Called("stage")]
    experts: str = ""
    by_sample: bool = False

    @property
    def elements(self) -> int:
        """Number of weights, or of values per token."""
        return self.shape[0] * self.shape[1]

    @property
    def tied(self) -> bool:
        """Whether it is an embedding that is also multiplied, by an output head."""
        return self.role == "embedding" and len(self.uses) > 1

    @property
    def gptq(self) -> bool:
        """Whether GPTQ applies: after the prefix, where the weight meets its inputs or their patches in one product."""
        return self.role != "embedding" and self.segment >= 0 and not self.by_sample

    @property
    def looked_up(self) -> bool:
        """Whether its rows are looked up before the first block, and nothing else is done with them."""
        return self.role == "embedding" and not self.tied and self.segment < 0 and not self.by_sample

    def compensates(self, fmt: Format) -> bool:
        """Whether a rounding that makes up for its errors does so here: GPTQ's, or its form for what is looked up."""
        return self.gptq or (self.looked_up and fmt.bits < WIDE)

    @property
    def damping(self) -> float:
        """Share of the mean diagonal of its moments that is added to them: of inputs, or of gradients."""
        return LOOKUP_DAMPING if self.looked_up else DAMPING

    @property
    def learns(self) -> bool:
        """Whether learned rounding moves its codes: a weight of a block, as GPTQ's are."""
        return self.kind == "weight" and self.role != "head" and self.gptq

    def to_json(self) -> dict[str, Any]:
        """Plain values, for a file header."""
        return written(self)


def find_sites(segmented: SegmentedModel) -> list[Site]:
    """The weight of every layer (see `natprec.models.layers`), in the order in which the model runs them.

    Raises:
        ModelError: the model has no Linear layer.
    """
    modules = dict(segmented.model.named_modules())
    owners: dict[int, list[str]] = {}
    for name in [*segmented.probe.order, *_never_called(segmented)]:
        if name in segmented.routing.routers:
            continue
        if multiplies(modules[name]) or _looked_up(modules[name]) or _convolves(modules[name], segmented):
            owners.setdefault(id(modules[name].weight), []).append(name)
    if not any(len(names) > 1 or not _looked_up(modules[names[0]]) for names in owners.values()):
        what = "Linear layer or convolution" if segmented.convolutions else "Linear layer"
        raise ModelError(
            f"model {type(segmented.model).__name__} has no {what}; natprec quantizes the weights of those"
        )
    output_head = getattr(segmented.model, "get_output_embeddings", lambda: None)()
    sites = []
    fused_groups: dict[tuple[str, int | str, int], str] = {}
    inputs_of = _inputs_of(segmented)
    for names in owners.values():
        name, layer = names[0], known_layer(modules[names[0]])
        role: Role = "embedding" if layer.kind.looks_up else "convolution" if layer.kind.dimensions else "linear"
        if layer.module is output_head:
            role = "head"
        fused_group = name
        if role == "linear" and name in inputs_of:
            fused_group = fused_groups.setdefault((name.rpartition(".")[0], inputs_of[name], len(names)), name)
        segment = min(segmented.segment_of(use) for use in names)
        experts = segmented.routing.containers.get(name, "")
        sites.append(Site(name, "weight", role, layer.shape, tuple(names), fused_group, segment, experts))
    return sites


def site_layer(model: nn.Module, site: Site) -> Layer:
    """The module that owns a site's weight."""
    return known_layer(model.get_submodule(site.name))


def site_weight(model: nn.Module, site: Site) -> Tensor:
    """The weight of a site, (rows, columns); to change it, `put` another into its layer."""
    return site_layer(model, site).matrix


def together(site: Site, profile: EngineProfile) -> tuple[str, str]:
    """What sites of one format have in common, for an engine."""
    if site.experts and profile.experts != "each":
        shared = {"layer": site.experts, "tensor": f"{site.experts}.{site.name.rpartition('.')[2]}", "model": ""}
        return "experts", shared[profile.experts]
    return "fused group", site.fused_group if profile.fuses else site.name


def refuse_indivisible(sites: Sequence[Site], formats: tuple[Format, ...]) -> None:
    """Name the first layer that a group size does not divide, before anything is measured.

    Raises:
        InputError: with the group sizes that do divide it.
    """
    for site in sites:
        for fmt in formats:
            if not fmt.divides(site.shape[1]):
                fits = [size for size in (32, 64, 128, 256) if site.shape[1] % size == 0]
                raise InputError(
                    f"group size {fmt.group_size} does not divide the {site.shape[1]} inputs of {site.name!r}; "
                    f"use --group-size {' or '.join(map(str, fits)) or 'channel'}"
                )


def uneven(sites: Sequence[Site], formats: Mapping[str, Sequence[Format]], group_size: int | None) -> str:
    """What becomes of the sites that the group size does not divide, in one sentence; empty where there are none.

    Args:
        formats: site name → its candidates.
        group_size: that was asked for; None: any that divide, as with GGUF types.
    """
    several: dict[str, list[Site]] = {}
    for site in sites:
        size = max((fmt.group_size or CHANNEL for fmt in formats[site.name]), default=None)
        if size is None or group_size not in (None, size):
            what = "16 bits" if size is None else f"groups of {size}" if size > 0 else "one scale per row"
            several.setdefault(what, []).append(site)
    if not several:
        return ""
    have = [
        f"{own[0].name!r} ({own[0].shape[1]} inputs){f' and {len(own) - 1} more' if own[1:] else ''} get {what}"
        for what, own in several.items()
    ]
    return (
        f"{'the smallest block' if group_size is None else f'group size {group_size}'} does not fit every weight: "
        + ("; ".join(have))
    )


def refuse_unblocked(sites: Sequence[Site], types: tuple[Format, ...]) -> None:
    """Name the first layer whose rows are whole blocks of no GGUF type, before anything is measured.

    Raises:
        InputError: there is one.
    """
    for site in sites:
        if not any(fmt.divides(site.shape[1]) for fmt in types):
            raise InputError(
                f"the {site.shape[1]} inputs of {site.name!r} are no multiple of {min(fmt.block for fmt in types)}, "
                "the smallest block of a GGUF type; use another --engine"
            )


def _inputs_of(segmented: SegmentedModel) -> dict[str, int | str]:
    """Linear → an identity of its input; of an expert that the probing forward did not reach, as in the others."""
    routing = segmented.routing
    known: dict[str, int | str] = {**segmented.probe.input_of}
    first: dict[tuple[str, int], str] = {}
    like: dict[tuple[str, str], str] = {}  # a Linear of each expert → the first of that expert with the same input
    for name, identity in segmented.probe.input_of.items():
        if name in routing.containers:
            own = routing.alike(name)
            like[own] = first.setdefault((name.rpartition(".")[0], identity), own[1])
    for name in routing.containers:
        known.setdefault(name, like.get(routing.alike(name), name))
    return known


def _looked_up(module: nn.Module) -> bool:
    """Whether it is an embedding that takes ids alone: OPT's positions take a mask, which no engine's code hands on."""
    layer = layer_of(module)
    return layer is not None and layer.kind.looks_up and len(inspect.signature(module.forward).parameters) == 1


def _convolves(module: nn.Module, segmented: SegmentedModel) -> bool:
    """Whether it is a convolution, where these are sites."""
    layer = layer_of(module, segmented.convolutions)
    return layer is not None and layer.kind.dimensions > 0


def _never_called(segmented: SegmentedModel) -> list[str]:
    """Layers with a product that the probing forward did not reach (experts, unused branches)."""
    return [
        name
        for name, module in segmented.model.named_modules()
        if multiplies(module) and name not in segmented.probe.input_of
    ]
