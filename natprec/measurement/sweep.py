"""The sweep: one forward and one backward per sequence give every site and every format at once.

Forward block by block, keeping each block's input; then suffix, blocks from the last, prefix, each
recomputed with gradients on and left as soon as its sites are contracted. At any time one segment's
gradients are in memory, and of weights that lie on disk one segment's. After each segment the state goes
to disk, so a killed run resumes there and arrives at the same bits: every random draw depends only
on the seed and the sequence's index. Of several processes each sweeps its own sequences: see
`natprec.measurement.sharding`.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from natprec.formats import Format
from natprec.measurement.activation_observer import ActivationObserver, watching
from natprec.measurement.block_inputs import BlockInputs
from natprec.measurement.contract_together import contract_together
from natprec.measurement.curves import Curve
from natprec.measurement.draw_rows import draw_rows
from natprec.measurement.few_tokens import lend, without_few
from natprec.measurement.fisher import rounding_distortions
from natprec.measurement.forward import Fitted, forward_blocks
from natprec.measurement.gptq_parallel import divided_columns, judge_fused_groups, spread, to_fit
from natprec.measurement.gptq_ratio import JUDGING, Compensation
from natprec.measurement.lookups import JUDGED_LOOKUPS, LookupCompensation
from natprec.measurement.resume import SweepState, load_tied, tied_state
from natprec.measurement.sharding import Sharding
from natprec.measurement.weight_observer import WeightObserver
from natprec.models.differentiation import Gathering, differentiate
from natprec.models.segments import Context, SegmentedModel
from natprec.models.weight_sites import Site, site_layer
from natprec.roundings import rounding_named
from natprec.tasks import Samples
from natprec.transforms import Gauge
from natprec.utils.hooks import attached
from natprec.utils.progress import Advance


class Observer(Protocol):
    """What watches a weight on the way back: see `backward`.

    Attributes:
        sequences: numbers of the batch's sequences.
    """

    sequences: range

    @property
    def site(self) -> Site:
        """The weight."""

    def attach(self, module: nn.Module) -> list[Any]:
        """Watch one use of it; returns the hooks."""

    def flush(self) -> None:
        """The batch is done."""


def sweep(
    segmented: SegmentedModel,
    sites: Sequence[Site],
    formats: dict[str, tuple[Format, ...]],
    samples: Samples,
    *,
    scale_dtype: torch.dtype,
    seed: int,
    rounding: str = "rtn",
    parts: int = 1,
    gauges: Mapping[str, Gauge] | None = None,
    activations: Mapping[Site, tuple[Format, ...]] | None = None,
    advance: Advance = lambda step: None,
    state: SweepState | None = None,
    save: Callable[[SweepState], None] = lambda state: None,
    scratch: Path | None = None,
    sharding: Sharding | None = None,
    fitted: Samples | None = None,
) -> dict[str, Curve]:
    """Measure every site.

    Args:
        sites: weights.
        formats: site name → candidate formats.
        samples: what goes forward and back.
        scale_dtype: dtype in which scales are stored.
        seed: of what the distortion draws.
        rounding: where it compensates for errors, what GPTQ leaves of the distortion to nearest is measured too.
        parts: kinds of text: equal, consecutive shares of the sequences.
        gauges: fused group → where its inputs can be rescaled; used where that lowers what GPTQ leaves.
        activations: more sites, with their candidate formats.
        state: of an earlier run that was killed; `save` receives it after each segment, complete at process 0.
        scratch: folder for block inputs that memory is too small for; default: the system's.
        sharding: which of the sequences this process sweeps; default: all.
        fitted: more samples, which go forward alone: GPTQ is fitted to their inputs too.
    Returns:
        Site name → curve; the same in all processes.
    """
    sharding = sharding or Sharding.alone(len(samples))
    workers, own_samples = sharding.workers, sharding.take(samples)
    terms = segmented.distortion.terms(samples.length)
    compensates = rounding_named(rounding).compensates
    state = state or SweepState(len(segmented.blocks), None, {}, {})
    spare: dict[torch.Size, list[Tensor]] = {}
    moments: dict[str, Tensor] = {}

    def compensation(site: Site) -> Compensation | None:
        if not compensates or not any(site.compensates(fmt) for fmt in formats[site.name]):
            return None
        layer = site_layer(segmented.model, site)
        if site.looked_up:
            each = JUDGED_LOOKUPS // max(1, len(samples) // JUDGING)
            return LookupCompensation(site, layer, scale_dtype, moments, rows_each=max(1, each))
        every = JUDGING if fitted is None else max(1, JUDGING * len(samples) // (len(samples) + len(fitted)))
        return Compensation(site, layer, scale_dtype, moments, every)

    together = Counter(segmented.routing.alike(site.name) for site in sites if site.experts)
    observers = {
        site.name: WeightObserver(
            site, site_layer(segmented.model, site), formats[site.name], sharding, parts, scale_dtype, seed, spare,
            ids=samples.ids if site.tied else None, compensation=compensation(site),
            peers=together[segmented.routing.alike(site.name)] if site.experts else 1,
            hidden=not segmented.probe.read.isdisjoint(site.uses),
        )
        for site in sites
        if site.name not in state.curves
    }  # fmt: skip
    flowing = {
        site.name: ActivationObserver(site, candidates, sharding, parts, seed)
        for site, candidates in (activations or {}).items()
        if site.name not in state.curves
    }
    load_tied(observers, state.tied)
    # products in bfloat16 would put the activations whose rounding is measured on a grid of their own
    gathering = segmented.judging if flowing else segmented.gathering
    inputs, contexts = BlockInputs(), list[list[Context]]()
    more = Fitted(segmented, fitted, workers, gathering, advance)
    if state.segment >= 0:
        with gathering():
            inputs, contexts = forward_blocks(segmented, own_samples, state.segment, advance, scratch)
        more.go_forward(state.segment, scratch)
    gradient = None if state.gradient is None else sharding.take(state.gradient)
    for segment in range(state.segment, -2 if segmented.blocks else -1, -1):
        workers.stage = segment_label(segmented, segment)
        with segmented.hold(segment):
            draw_rows([each for each in observers.values() if _runs_in(segmented, each, segment)], seed)
            with watched(segmented, observers, segment), watching(segmented, flowing, segment):
                gradient = backward(
                    segmented, observers, flowing, segment, inputs, contexts, own_samples, gradient, seed, advance,
                    gathering, first=sharding.own.start,
                )  # fmt: skip
            fits = [
                each.compensation for each in observers.values() if each.compensation and each.site.segment == segment
            ]
            fits = [each for each in fits if each.gathers and each.site.gptq]  # what goes forward has no gradients
            with attached([hook for each in fits for hook in each.attach(segmented.model)]):
                more.show(segment, [use for each in fits for use in each.site.uses])
            if inputs:
                inputs.pop()
            _contract(observers, sharding, terms)
            done = {site.name: observers.pop(site.name) for site in sites if site.segment == segment}
            fitting = to_fit(without_few(done), workers)
            judge_fused_groups(fitting, gauges or {})
            spread(without_few(done), workers)
            lost = rounding_distortions([(each.samples, each.formats) for each in done.values()], sharding)
            curves = {
                name: observer.curve(terms, backward)
                for (name, observer), backward in zip(done.items(), lost, strict=True)
            }
            state.curves |= lend(curves, done, terms)
            for name in [watcher.site.name for watcher in flowing.values() if watcher.site.segment == segment]:
                watcher = flowing.pop(name)
                state.curves[name] = watcher.curve(terms, divided_columns(watcher.site, done, gauges or {}))
            moments.clear()
        for shape in spare.keys() - {observer.buffer for observer in observers.values() if observer.site.gptq}:
            del spare[shape]
        state.segment, state.tied = segment - 1, tied_state(observers, state.tied)
        state.gradient = None if gradient is None else sharding.gather(gradient, at=0)
        save(state)
    return {site.name: state.curves[site.name] for site in (*sites, *(activations or {}))}


def sweep_batches(segmented: SegmentedModel, samples: Samples, segment: int | None = None) -> int:
    """Counts the calls of `advance` by `sweep`, from the segment that a resumed one begins with."""
    blocks = len(segmented.blocks)
    segment = blocks if segment is None else segment
    forward, backward = (1 + segment, 2 + segment) if blocks else (0, 1 + segment)
    return len(samples.batches(segmented.together)) * (forward + backward)


def backward(
    segmented: SegmentedModel,
    observers: Mapping[str, Observer],
    flowing: Mapping[str, ActivationObserver],
    segment: int,
    inputs: BlockInputs,
    contexts: list[list[Context]],
    samples: Samples,
    incoming: Tensor | None,
    seed: int,
    advance: Advance,
    gathering: Gathering,
    first: int = 0,
    numbers: Sequence[int] | None = None,
) -> Tensor | None:
    """Run a segment forward and backward under its observers; returns the gradient at its input.

    Args:
        samples: of this process, as all that is given and returned; the first sample has the number `first`.
        numbers: of the samples, by which the distortion draws, where they do not follow on one another.
    """
    own = inputs[segment] if inputs else None
    gradient = None if own is None else torch.empty_like(own, dtype=torch.float32)  # a model may cast its stream
    for number, batch in enumerate(samples.batches(segmented.together)):
        sequences = range(first + batch.start, first + batch.stop)
        for observer in observers.values():
            observer.sequences = sequences
        for watcher in flowing.values():
            watcher.sequences = sequences
        hidden = None if own is None else own[batch].detach().requires_grad_()
        known = None if incoming is None else incoming[batch]
        given = (hidden, samples[batch], contexts[number] if contexts else [], known)
        differentiate(segmented, segment, *given, sequences if numbers is None else numbers[batch], seed, gathering)
        if hidden is not None and gradient is not None:
            gradient[batch] = hidden.grad  # type: ignore[assignment]
        for observer in observers.values():
            observer.flush()
        advance(f"{segment_label(segmented, segment)} backward")
    return gradient


def _contract(observers: Mapping[str, WeightObserver], sharding: Sharding, terms: int) -> None:
    """Contract all matrix products of a finished segment: the processes do so together, each for some rows."""
    if observers:
        reached = sharding.workers.all_sum(*(each.reached() for each in observers.values()))
        for each, found in zip(observers.values(), reached, strict=True):
            each.complete(found)
        contract_together(list(observers.values()), sharding, terms)


def _runs_in(segmented: SegmentedModel, observer: WeightObserver, segment: int) -> bool:
    return any(segmented.segment_of(use) == segment for use in observer.site.uses)


def segment_label(segmented: SegmentedModel, segment: int) -> str:
    """A segment's name for people."""
    if segment == len(segmented.blocks):
        return "head"
    return segmented.block_names[segment] if segment >= 0 else "embedding"


@contextlib.contextmanager
def watched(segmented: SegmentedModel, observers: Mapping[str, Observer], segment: int) -> Iterator[None]:
    """Hooks of the observers on the modules that run in a segment."""
    handles = [
        handle
        for observer in observers.values()
        for use in observer.site.uses
        if segmented.segment_of(use) == segment
        for handle in observer.attach(segmented.model.get_submodule(use))
    ]
    with attached(handles):
        yield
