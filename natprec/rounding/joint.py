"""A look at a plan before it is rounded: what its errors cost together (see `natprec.solver.joint`).

Of the samples that went back in the sweep, segment by segment: the model with the plan's errors and with half of them
goes forward, then the model as it is, and back, each site telling g · δ of each sample. At any time one segment's
weights are in memory, with their errors. Four reads of the weights, and about what going back cost in the sweep.
Several processes each take some of the samples.

δ is the error of rounding to nearest, with what it leaves in scales and embeddings. A rounding that makes up for its
errors is known only when it has been done: there δ is scaled, site by site, so that its second order is what the
rounding is predicted to leave. These stand for the rounding's errors in size, not in the way that they point, so that
going back along them is shown and predicts nothing, and what they cost is not measured.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from natprec.formats import Format
from natprec.measurement.block_inputs import BlockInputs
from natprec.measurement.forward import forward_blocks
from natprec.measurement.lookups import own_lookups
from natprec.measurement.sharding import Sharding
from natprec.measurement.subject import Subject
from natprec.measurement.sweep import Observer, backward, watched
from natprec.models.activation_sites import rounded_states, scale_made_for
from natprec.models.attention import AttentionHook
from natprec.models.layers import known_layer
from natprec.models.segments import Context
from natprec.models.weight_sites import Site, site_layer
from natprec.quantizers.activations import round_activations
from natprec.rounding.flows import flows_rounded
from natprec.rounding.segment import SegmentRounder
from natprec.solver import Plan
from natprec.tasks import Samples
from natprec.utils.hooks import differentiable, of_its_own
from natprec.utils.progress import Advance

OWN_DRAWS = 1 << 31
"""Added to the numbers of samples, so that nothing is drawn as in the sweep, by whose draws the plan was chosen. Of a
seed torch's generator takes the lower 32 bits."""


class Look:
    """Samples on their way through a model as it is, kept for the plans that are looked at beside it.

    The subject's model stays as it is.
    """

    def __init__(self, subject: Subject, samples: Samples, seed: int = 0, scratch: Path | None = None) -> None:
        """Nothing runs yet.

        Args:
            samples: those that went back when the plans' curves were measured, of all processes.
            scratch: folder for block inputs that memory is too small for; default: the system's.
        """
        own = Sharding.of(samples.batches(subject.segmented.together), subject.segmented.workers)
        self.subject, self.samples, self._seed, self._scratch = subject, own.take(samples), seed, scratch
        self._sharding, self._parts = own, self.samples.batches(subject.segmented.together)
        self._inputs, self._contexts = BlockInputs(), list[list[Context]]()

    def points(
        self, plan: Plan, shares: Mapping[str, float], scales: Sequence[float], advance: Advance = lambda step: None
    ) -> np.ndarray:
        """The distortion of so much of a plan's errors each: (scales, samples).

        Args:
            shares: site → what its rounding leaves of the distortion of rounding to nearest; others: all.
            advance: called `steps(len(scales))` times.
        """
        work, segmented = _PlannedErrors(self.subject, plan, shares), self.subject.segmented
        planned = [_forward(work, self.samples, scale, advance) for scale in scales]
        found, suffix = np.zeros((len(scales), len(self.samples))), len(segmented.blocks)
        self._go_forward(advance)
        with segmented.judging(), torch.no_grad(), segmented.hold(suffix):
            last = self._inputs[-1] if self._inputs else None
            for number, batch in enumerate(self._parts):
                rows = self.samples[batch]
                reference = segmented.suffix(None if last is None else last[batch], rows)
                for row, scale, states in zip(found, scales, planned, strict=True):
                    with work.put(suffix, scale), flows_rounded(segmented.model, work.flowing, plan, scale):
                        other = segmented.suffix(states[number] if states else None, rows)
                    row[batch] = segmented.distortion.between(reference, other, rows).mean(1).cpu().numpy()
                advance("head forward")
        return self._of_all(found)

    def along(self, plan: Plan, shares: Mapping[str, float], advance: Advance = lambda step: None) -> np.ndarray:
        """One backward set: g_v · δ_v / √(2 · terms) of each site and sample, (sites, samples).

        Args:
            advance: called `steps()` times.
        """
        work, segmented = _PlannedErrors(self.subject, plan, shares), self.subject.segmented
        found = np.zeros((len(work.sites) + len(work.flows), len(self.samples)))
        self._go_forward(advance)
        gradient, begin = None, OWN_DRAWS + self._sharding.own.start
        for segment in reversed(segmented.segments):
            with segmented.hold(segment):
                observers = work.observers(segment, found, begin)
                with watched(segmented, observers, segment):
                    gradient = backward(
                        segmented, observers, {}, segment, self._inputs, self._contexts, self.samples, gradient,
                        self._seed, advance, segmented.gathering, first=begin,
                    )  # fmt: skip
            if self._inputs:
                self._inputs.pop()
        self._contexts = []
        return self._of_all(found) / math.sqrt(2 * segmented.distortion.terms(self.samples.length))

    def _of_all(self, own: np.ndarray) -> np.ndarray:
        """(rows, samples) of all processes, from each one's own samples."""
        return self._sharding.gather(torch.from_numpy(own).T.contiguous()).T.contiguous().numpy()

    def steps(self, scales: int | None = None) -> int:
        """At most how many times `points`, of so many scales, or `along` calls `advance`."""
        segments = len(self.subject.segmented.segments)
        passes = (segments - 1) + (segments if scales is None else 1 + scales * (segments - 1))
        return len(self._parts) * passes

    def _go_forward(self, advance: Advance) -> None:
        """Through the model as it is, once; the way back uses it up."""
        segmented = self.subject.segmented
        if not self._contexts:
            with segmented.judging():
                self._inputs, self._contexts = forward_blocks(
                    segmented, self.samples, len(segmented.blocks), advance, self._scratch
                )


@torch.no_grad()
def _forward(work: _PlannedErrors, samples: Samples, scale: float, advance: Advance) -> list[Tensor]:
    """The samples' states before the last segment, in the model with so much of the plan's errors; by batch."""
    segmented = work.subject.segmented
    parts = samples.batches(segmented.together)
    found: list[Tensor] = []
    contexts: list[list[Context]] = []
    for segment in segmented.segments[:-1]:
        with (
            segmented.hold(segment),
            segmented.judging(),
            work.put(segment, scale),
            flows_rounded(segmented.model, work.flowing, work.plan, scale),
        ):
            for number, batch in enumerate(parts):
                if segment < 0:
                    hidden, context = segmented.prefix(samples[batch])
                    found.append(hidden)
                    contexts.append(context)
                else:
                    found[number] = segmented.block(segment, found[number], contexts[number][segment])
                advance("planned forward")
    return found


class _PlannedErrors:
    """The errors of a plan's sites, segment by segment.

    Attributes:
        sites: weights that the plan rounds; `flows`: activations that it rounds, with their formats and scales.
        flowing: all sites that are no weights, where the plan rounds any of them.
    """

    def __init__(self, subject: Subject, plan: Plan, shares: Mapping[str, float]) -> None:
        self.subject, self.plan, self._shares = subject, plan, shares
        self.sites = [site for site in subject.sites if plan.sites[site.name].format is not None]
        self.flowing = subject.activations if plan.rounded_inputs or plan.cache else []
        self.flows: list[tuple[Site, Format, Tensor | None]] = []
        device = next(subject.model.parameters()).device
        for site in self.flowing:
            if site.role == "linear" and site.fused_group in plan.rounded_inputs:
                fmt = plan.rounded_inputs[site.fused_group]
                reach = plan.inputs[site.fused_group].largest
                self.flows.append((site, fmt, scale_made_for(fmt, reach, device)))
            elif site.role == "cache" and plan.cache is not None:
                fmt = plan.cache.format
                self.flows.append((site, fmt, scale_made_for(fmt, plan.cache.reach(site.name), device)))

    @contextlib.contextmanager
    def put(self, segment: int, scale: float = 1.0) -> Iterator[None]:
        """Within the block the weights of a segment, which is held, are off by so much of their errors."""
        parameters = self.subject.segmented.parameters(segment)
        before = [(parameter, parameter.data) for parameter in parameters]
        try:
            errors = self.errors(segment, rest=True)
            for site, error in errors.items():
                layer = site_layer(self.subject.model, site)
                layer.put(layer.matrix + scale * error)
            yield
        finally:
            for parameter, values in before:
                parameter.data = values

    @torch.no_grad()
    def errors(self, segment: int, rest: bool = False) -> dict[Site, Tensor]:
        """Of each site that a segment, which is held, uses: (rows, columns).

        Args:
            rest: leave what is not quantized in the dtype in which it is stored.
        """
        model, segmented = self.subject.model, self.subject.segmented
        work = SegmentRounder(segmented, self.subject.sites, self.plan, self.subject.storage_dtype)
        used = [site for site in self.sites if segment in {segmented.segment_of(use) for use in site.uses}]
        layers = {site: site_layer(model, site) for site in used}
        before = {site: layer.weight.data for site, layer in layers.items()}
        exact = {site: layer.matrix.detach() for site, layer in layers.items()}
        work.to_nearest(segment, used)
        found = {}
        for site, layer in layers.items():
            share = self._shares.get(site.name, 1.0)
            found[site] = (layer.matrix.detach() - exact[site]).mul_(math.sqrt(share))
            layer.weight.data = before[site]
        if rest:
            work.store_the_rest(segmented.parameters(segment))
        return found

    def observers(self, segment: int, along: np.ndarray, begin: int) -> dict[str, Observer]:
        """What watches a segment's sites and fills the rows of `along`, (sites, samples).

        Args:
            begin: the number of the first of these samples.
        """
        row = {site: number for number, site in enumerate([*self.sites, *(site for site, _, _ in self.flows)])}
        found: dict[str, Observer] = {
            site.name: _WeightError(site, along[row[site]], begin, error)
            for site, error in self.errors(segment).items()
        }
        for site, fmt, scale in self.flows:
            if site.segment == segment:
                found[site.name] = _FlowError(site, along[row[site]], begin, fmt, scale)
        return found


class _Watcher:
    """Adds up g · δ of each sample, whatever the batch."""

    def __init__(self, site: Site, along: np.ndarray, begin: int) -> None:
        self.site, self._along, self._begin = site, along, begin
        self.sequences = range(0)

    def flush(self) -> None:
        """Nothing waits for the batch's end."""

    def add(self, gradient: Tensor, error: Tensor) -> None:
        """Account for a tensor's gradient and its error, both with the batch's samples first."""
        count, first = len(self.sequences), self.sequences.start - self._begin
        both = (gradient.float() * error).reshape(count, -1).double().sum(1)
        self._along[first : first + count] += both.cpu().numpy()


class _WeightError(_Watcher):
    """Of a weight: y = x Wᵀ is off by x δᵀ, and what an embedding looks up by rows of δ."""

    def __init__(self, site: Site, along: np.ndarray, begin: int, error: Tensor) -> None:
        super().__init__(site, along, begin)
        self._error = error

    def attach(self, module: nn.Module) -> list[Any]:
        """See `Observer`."""
        return [module.register_forward_hook(self._watch)]

    def _watch(self, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        layer = known_layer(module)  # of a tied weight one use looks it up, another multiplies
        if not torch.is_grad_enabled():
            return output
        given = args[0].detach()
        if layer.kind.looks_up:
            given, output = own_lookups(given, output, len(self.sequences))
            off = self._error[given]
        else:
            off = layer.multiplied(given.float(), self._error)
            if not output.requires_grad:
                output = differentiable(output)
        output.register_hook(lambda gradient: self.add(gradient, off))
        return output


class _FlowError(_Watcher):
    """Of an activation that is rounded as it flows."""

    def __init__(self, site: Site, along: np.ndarray, begin: int, fmt: Format, scale: Tensor | None) -> None:
        super().__init__(site, along, begin)
        self._format, self._scale = fmt, scale

    def attach(self, module: nn.Module) -> list[Any]:
        """See `Observer`."""
        if self.site.role == "cache":
            return [AttentionHook(module, self._watch_states)]
        return [module.register_forward_pre_hook(self._watch_input)]

    def _watch_input(self, _: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        rounded = round_activations(args[0].detach(), self._format, self._scale)
        return (self._watched(args[0], rounded), *args[1:])

    def _watch_states(self, _: nn.Module, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        if self.site.kind == "key":
            return self._watched(key, rounded_states(key.detach(), self._format, self._scale)), value
        return key, self._watched(value, rounded_states(value.detach(), self._format, self._scale))

    def _watched(self, tensor: Tensor, rounded: Tensor) -> Tensor:
        if not torch.is_grad_enabled():
            return tensor
        error = rounded - tensor.detach()
        own = of_its_own(tensor)
        own.register_hook(lambda gradient: self.add(gradient, error))
        return own
