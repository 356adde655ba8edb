"""Chooses grids of integer codes: the best of a few that are narrower than the one that spans the group.

A narrower grid has a smaller squared error at 3 to 5 bits, but a larger output KL: what it clips are
the largest weights, whose errors are not independent (LOG.md, 2026-11-22). So to nearest nothing is clipped from 3
bits up. Where the power of each input is known, GPTQ lets it decide how much to clip. At 1 and 2 bits the spanning grid
is too coarse; there each group takes the best of a few shrunken scales.

Formats that differ in nothing but their width are tried together (`alike`), each trial along the first dimension.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from itertools import product

import torch
from torch import Tensor

from natprec.formats import Format, Integer
from natprec.quantizers.integer import SHRINK, Grid, fitted_grids, grid_errors, spanning_scale
from natprec.quantizers.scale_storage import column, nested_grid
from natprec.utils.launches import portion

CLIP = {3: (1.0, 0.9, 0.8, 0.7), 4: (1.0, 0.92, 0.84), 5: (1.0, 0.95)}
"""Of the spanning scale, as `SHRINK`, where it is known how much an error counts at each column: clipping helps."""

ENDS = {
    2: (1.0, 0.95, 0.9, 0.85, 0.8, 0.75, 0.7, 0.65, 0.6),
    3: (1.0, 0.95, 0.9, 0.85, 0.8, 0.75, 0.7),
    4: (1.0, 0.92, 0.84, 0.76),
    5: (1.0, 0.95),
}
"""Fractions of both ends of a grid with a zero point, tried in pairs where it is known how much an error counts: scale
and zero point are searched together, in place of one clipped range (NeUQI, arXiv:2505.17595)."""

TRIED = 1 << 16
"""Weights, times trials, that are tried at a time on a CPU: of fewer the calls would cost more than what they do."""


def alike(formats: Sequence[Format], known: bool = False) -> list[list[int]]:
    """Places of the formats whose grids are chosen in one pass, of integers that differ in nothing but their width, by
    that width. Those of nested scales, of two ends to be moved, and of other codebooks, are alone.

    Args:
        known: how much an error counts at each column; then the grids' ends are moved: see `ENDS`.
    """
    found: dict[object, list[int]] = {}
    for place, fmt in enumerate(formats):
        book = fmt.codebook
        if isinstance(book, Integer) and not fmt.nested and not (known and _two_ends(fmt)):
            key: object = (fmt.scaling, book.signed, book.balanced, fmt.bits in SHRINK)
        else:
            key = place
        found.setdefault(key, []).append(place)
    return [sorted(places, key=lambda place: formats[place].bits) for places in found.values()]


def _two_ends(fmt: Format) -> bool:
    """Whether both ends of the grid are moved by themselves, where it is known how much an error counts."""
    return fmt.scaling.zero == "code" and fmt.bits in ENDS


def choose_grid(
    grouped: Tensor, fmt: Format, scale_dtype: torch.dtype, power: Tensor | None = None
) -> tuple[Tensor, Tensor | None]:
    """The grid of each group with the least squared error among those tried: see `choose_grids`.

    Returns:
        scale and offset (rows, groups).
    """
    scale, offset = choose_grids(grouped, [fmt], scale_dtype, power)
    return scale[0], None if offset is None else offset[0]


def choose_grids(
    grouped: Tensor, formats: Sequence[Format], scale_dtype: torch.dtype, power: Tensor | None = None
) -> Grid:
    """The grid of each group with the least squared error among those tried, under formats that are `alike`.

    Args:
        grouped: (rows, groups, group size), float32.
        formats: `alike`, where `power` is given also when that is known.
        power: (groups, group size), of each row or of all, what an error at each weight counts; then clipping is tried
            too.
    Returns:
        (formats, rows, groups) each.
    """
    low, high = grouped.amin(-1), grouped.amax(-1)  # faster than aminmax
    first = formats[0]
    if not first.float_offset or first.nested:
        low, high = low.clamp(max=0), high.clamp(min=0)  # 0 is on such a grid, or next to it
    if power is not None and _two_ends(first):
        scale, offset = _of_two_ends(grouped, first, low, high, scale_dtype, power)
    else:
        scale, offset = _of_one_fraction(grouped, formats, low, high, scale_dtype, power)
    if not first.nested:
        return scale, offset
    scale, offset = nested_grid(scale[0], None if offset is None else offset[0], first)
    return scale.unsqueeze(0), None if offset is None else offset.unsqueeze(0)


def _of_two_ends(
    grouped: Tensor, fmt: Format, low: Tensor, high: Tensor, scale_dtype: torch.dtype, power: Tensor
) -> Grid:
    """(1, rows, groups), each end of [low, high] moved by itself; as many pairs at a time as are worth a launch."""
    pairs, step = list(product(ENDS[fmt.bits], repeat=2)), max(1, portion(TRIED, grouped.device) // grouped.numel())
    least = best = None
    for start in range(0, len(pairs), step):
        ones, others = zip(*pairs[start : start + step], strict=True)
        lows, highs = low * column(ones, low.device), high * column(others, low.device)
        tried = [fmt] * len(ones)
        grid = fitted_grids(grouped, tried, spanning_scale(lows, highs, [fmt])[0], lows, scale_dtype)
        error = grid_errors(grouped, tried, *grid)
        after, found = _first_least(torch.linalg.vecdot(error, error * power), grid)
        if least is None or best is None:
            least, best = after, found
            continue
        better = after < least
        least = torch.where(better, after, least)
        best = tuple(torch.where(better, new, old) for new, old in zip(found, best, strict=True))
    assert best is not None
    return best[0], best[1]


def _first_least(errors: Tensor, grid: Grid) -> tuple[Tensor, tuple[Tensor, ...]]:
    """The least of the trials' errors (trials, rows, groups), and the grid of the first that has it; (1, …) each."""
    scale, offset = grid
    assert offset is not None
    if len(errors) == 1:
        return errors, (scale, offset)
    first = errors.argmin(0, keepdim=True)
    return errors.gather(0, first), (scale.gather(0, first), offset.gather(0, first))


def _of_one_fraction(
    grouped: Tensor,
    formats: Sequence[Format],
    low: Tensor,
    high: Tensor,
    scale_dtype: torch.dtype,
    power: Tensor | None,
) -> Grid:
    """(formats, rows, groups), the whole of [low, high] shrunk."""
    plan = _trials(tuple(formats), power is not None)
    spanning = spanning_scale(low, high, formats)
    tried, wanted = [formats[place] for place, _ in plan], _shrunk(spanning, plan)
    reach = None if formats[0].symmetric else _shrunk(low.unsqueeze(0), plan).expand(wanted.shape)
    scale, offset = fitted_grids(grouped, tried, wanted, reach, scale_dtype)
    if len(plan) > len(formats):
        scale, offset = _best(grouped, formats, plan, scale, offset, power)
    return scale, offset


@functools.cache
def _trials(formats: tuple[Format, ...], clipped: bool) -> list[tuple[int, float]]:
    """What is tried: place of a format and fraction of its spanning scale; all first ones, then all second ones."""
    fractions = [SHRINK.get(fmt.bits) or (CLIP.get(fmt.bits, (1.0,)) if clipped else (1.0,)) for fmt in formats]
    return [
        (place, some[number])
        for number in range(max(map(len, fractions)))
        for place, some in enumerate(fractions)
        if number < len(some)
    ]


def _shrunk(values: Tensor, plan: list[tuple[int, float]]) -> Tensor:
    """(trials, rows, groups) of (formats, rows, groups), or of one for all formats, each times its fraction."""
    fractions = {fraction for _, fraction in plan}
    if len(values) > 1 and len(plan) > len(values):
        values = values[_places(tuple(place for place, _ in plan), values.device)]
    if len(fractions) == 1:
        return values * fractions.pop()
    return values * column(tuple(fraction for _, fraction in plan), values.device)


def _best(
    grouped: Tensor,
    formats: Sequence[Format],
    plan: list[tuple[int, float]],
    scale: Tensor,
    offset: Tensor | None,
    power: Tensor | None,
) -> Grid:
    """Of each format's trials the one with the least squared error, the first of equal ones."""
    count = len(formats)
    several = sorted({place for place, _ in plan[count:]})  # neighbours, as formats come by their width
    errors = _squared_errors(grouped, formats, plan, [*several, *range(count, len(plan))], scale, offset, power)
    least, chosen, moved = errors[: len(several)], scale[:count], None if offset is None else offset[:count]
    for some in _rounds(plan, count):
        trials = slice(some.start, some.stop)
        places = slice(plan[some[0]][0], plan[some[-1]][0] + 1)
        known = slice(places.start - several[0], places.stop - several[0])
        after = errors[some.start - count + len(several) : some.stop - count + len(several)]
        better = after < least[known]
        least = _with(least, known, torch.where(better, after, least[known]))
        chosen = _with(chosen, places, torch.where(better, scale[trials], chosen[places]))
        if offset is not None and moved is not None:
            moved = _with(moved, places, torch.where(better, offset[trials], moved[places]))
    return chosen, moved


def _with(whole: Tensor, place: slice, part: Tensor) -> Tensor:
    """The whole with another part in that place."""
    if len(part) == len(whole):
        return part
    return torch.cat([whole[: place.start], part, whole[place.stop :]])


def _rounds(plan: list[tuple[int, float]], start: int) -> Iterator[range]:
    """Numbers of the second trials of all formats, then of the third ones."""
    while start < len(plan):
        stop = start + 1
        while stop < len(plan) and plan[stop][0] > plan[stop - 1][0]:
            stop += 1
        yield range(start, stop)
        start = stop


def _squared_errors(
    grouped: Tensor,
    formats: Sequence[Format],
    plan: list[tuple[int, float]],
    compared: list[int],
    scale: Tensor,
    offset: Tensor | None,
    power: Tensor | None,
) -> Tensor:
    """(compared, rows, groups), of each trial that is compared; as many of them at a time as are worth a launch."""
    step, found = max(1, portion(TRIED, grouped.device) // grouped.numel()), []
    for start in range(0, len(compared), step):
        some = compared[start : start + step]
        at = slice(some[0], some[-1] + 1) if some[-1] - some[0] + 1 == len(some) else _places(tuple(some), scale.device)
        tried = [formats[plan[number][0]] for number in some]
        error = grid_errors(grouped, tried, scale[at], None if offset is None else offset[at])
        found.append(torch.linalg.vecdot(error, error if power is None else error * power))
    return found[0] if len(found) == 1 else torch.cat(found)


@functools.cache
def _places(places: tuple[int, ...], device: torch.device) -> Tensor:
    """As indices: copied to a device once."""
    return torch.tensor(places).to(device)
