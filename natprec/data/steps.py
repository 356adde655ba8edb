"""Samples of a part of a pipeline: rows of its calls, spread evenly over timesteps, images and what these are asked."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from natprec.data.pipeline_calls import (
    Call,
    default_steps,
    entry_of,
    noted,
    refuse_unlike,
    run_pipeline,
)
from natprec.data.prompts import asked_of
from natprec.data.seen import NO_PIECES, Pieces, unseen_samples
from natprec.errors import InputError
from natprec.tasks import Samples
from natprec.tasks.diffusion import TIMESTEP, Calls, PipelinePart
from natprec.utils.hooks import attached
from natprec.utils.seeds import derived

LEAST, MOST_JUDGED = 32, 256
"""Samples that are measured on at least, and that judge at most unless the user gives a number."""

FROM_EACH = 8
"""Samples of one image: neighbouring steps are much alike."""

FEWEST_IMAGES = 16
"""Of which each is asked with another prompt or class, as far as there are so many."""

TOGETHER = 4
"""Images that the pipeline makes at once."""

PROBED_STEPS = 2

Progress = Callable[[int, int], None]


def learn_calls(part: PipelinePart) -> Calls:
    """How the pipeline calls a part, from one image in two steps.

    Raises:
        ModelError: it does not, or in a way that natprec cannot repeat.
    """
    module = getattr(part.pipeline, part.component)
    entry = entry_of(module, part.component)
    shapes: list[torch.Size] = []
    with _watched(module, shapes), noted(part, entry) as calls:
        run_pipeline(part, part.asked.items[:1], [0], min(PROBED_STEPS, part.steps or PROBED_STEPS), entry != "forward")
    if not calls:
        raise InputError(
            f"component {part.component!r}: the pipeline makes images without calling it; give another --component"
        )
    refuse_unlike(calls, part.component)
    rows = {name: tensor[:1] for name, tensor in calls[0].rows.items()}
    shown = Samples.of(rows)
    tokens = {shape[1] for shape in shapes if len(shape) == 3}
    if len(tokens) == 1 and all(len(shape) == 3 for shape in shapes):
        shown = Samples(rows, tokens.pop())
    return Calls(calls[0].constants, shown, entry, _channels(part))


def _watched(module: nn.Module, shapes: list[torch.Size]) -> Any:
    """Within the block the shapes are noted that the members of the largest `ModuleList` are given."""
    lists = [each for each in module.modules() if isinstance(each, nn.ModuleList) and len(each)]
    blocks = max(lists, key=lambda several: sum(each.numel() for each in several.parameters()), default=())

    def note(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        shapes.extend(each.shape for each in (*args, *kwargs.values())[:1] if isinstance(each, Tensor))

    return attached([block.register_forward_pre_hook(note, with_kwargs=True) for block in blocks])


def _channels(part: PipelinePart) -> int | None:
    """Channels of a denoiser's output that its pipeline reads: those beside them are a variance, which few read."""
    config: Any = getattr(getattr(part.pipeline, part.component), "config", {})
    learned = str(part.pipeline.scheduler.config.get("variance_type", "")).startswith("learned")
    channels, out = (config.get(name) if hasattr(config, "get") else None for name in ("in_channels", "out_channels"))
    predicts = isinstance(channels, int) and out == 2 * channels and part.component == "transformer"
    return channels if predicts and not learned else None


def read_steps(
    part: PipelinePart,
    source: str | None,
    *,
    sequences: int,
    length: int,
    split: str,
    model: Any,
    shared: bool = False,
    progress: Progress = lambda done, total: None,
    seen: Pieces = NO_PIECES,
    least: int | None = None,
    seed: int = 0,
    **of_text: Any,
) -> Samples:
    """So many rows of calls that the pipeline makes of its part.

    Args:
        part: that is measured; `model`: its network; `source`: a file of prompts or classes, None: natprec's.
        split: 'calibration' or 'held-out'; `shared`: whether both come out of this file. Their noise is never the same.
        progress: told (positions done, positions in all).
        seen: of what was measured on; rows among it are left out.
        least: samples that are enough; default: one.
        of_text: what a text would be asked for.
    Raises:
        InputError: no prompts, or no row that was not measured on.
        ModelError: the pipeline fails, or makes NaN.
    """
    assert part.calls is not None
    judges = split == "held-out"
    count = min(sequences, max(MOST_JUDGED, least or 0)) if judges else max(sequences, LEAST)
    asked = part.asked if source is None else asked_of(part.asked.pipeline, source)
    steps = part.steps or default_steps(part.pipeline)
    images, calls = max(FEWEST_IMAGES, -(-count // min(steps, FROM_EACH))), list[Call]()
    items = asked.chosen(images, split, shared or source is None)
    with noted(part, part.calls.entry) as found:
        for first in range(0, images, TOGETHER):
            numbers = range(first, min(images, first + TOGETHER))
            seeds = [derived(2 * seed + judges, number) for number in numbers]
            own = [items[number] for number in numbers if items]
            run_pipeline(part, own, seeds, steps, part.calls.entry != "forward")
            calls += found
            found.clear()
            progress(numbers[-1] * sequences * length // images, sequences * length)
    progress(sequences * length, sequences * length)
    refuse_unlike(calls, part.component)
    remedy = "judge with another --seed, or give other prompts with --eval-data"
    return unseen_samples(spread_over(calls, count, length), seen, least, "steps", remedy)


def spread_over(calls: Sequence[Call], count: int, length: int) -> Samples:
    """At most so many rows, evenly of all timesteps, and of each timestep evenly of all images."""
    rows = {name: torch.cat([call.rows[name] for call in calls]) for name in calls[0].rows}
    total = len(next(iter(rows.values())))
    order = torch.arange(total)
    if TIMESTEP in rows:
        order = torch.argsort(rows[TIMESTEP].double(), descending=True, stable=True)
    chosen = order[[(2 * number + 1) * total // (2 * min(count, total)) for number in range(min(count, total))]]
    return Samples({name: tensor[chosen] for name, tensor in rows.items()}, length)
