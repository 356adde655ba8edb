"""Costs of products that were not measured, from those that were, and how far such a cost may be off.

- Another number of tokens, between two that were measured: along a straight line; the distance from a roofline through
  the same ends (flat, then in proportion to the tokens) is the error.
- Another shape, from three measured ones on: cost = a + b · rows · columns, fitted for least relative errors, a and b
  0 or more; the error is the largest that this makes on a measured shape that is left out of the fit.
- Another shape, from fewer: in proportion to a format that was measured at both shapes; the error is by how much such
  formats disagree, or not known where there is only one.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import TypeAlias

from natprec.costs.model import Estimate, Product
from natprec.errors import InputError
from natprec.formats import Format

Shape = tuple[int, int]
Pair = tuple[Format | None, Format | None]
Points: TypeAlias = "dict[Pair, dict[Shape, dict[int, Estimate]]]"
"""Formats of weights and inputs → rows and columns → tokens → what was measured."""

FITTED = 3
"""Shapes from which a line is fitted."""


def interpolated(points: Points, product: Product) -> Estimate:
    """The cost of a product, measured or not.

    Raises:
        InputError: its formats were not measured, or the tokens lie outside of what was measured, or one shape alone
            was measured and no other format tells how the two compare.
    """
    own = points.get((product.weight, product.inputs))
    if own is None:
        raise InputError(f"{product.formats} was not measured")
    shape = (product.rows, product.columns)
    if shape in own:
        return at_tokens(own[shape], product)
    known = {each: at_tokens(costs, product) for each, costs in own.items() if _reaches(costs, product.tokens)}
    if len(known) >= FITTED:
        return _fitted(known, shape)
    found = _in_proportion(points, product, known)
    if found is None:
        shapes = ", ".join(f"{rows} × {columns}" for rows, columns in own)
        raise InputError(
            f"{product.formats} was measured for {shapes}, and {product.rows} × {product.columns} at {product.tokens} "
            f"tokens cannot be told from that; measure this shape, or {FITTED} others, with natprec costs --shapes"
        )
    return found


def at_tokens(costs: dict[int, Estimate], product: Product) -> Estimate:
    """The cost at a number of tokens, of one shape.

    Raises:
        InputError: none was measured on one side.
    """
    tokens = product.tokens
    if tokens in costs:
        return costs[tokens]
    if not _reaches(costs, tokens):
        raise InputError(
            f"{product.formats} of {product.rows} × {product.columns} was measured for "
            f"{', '.join(map(str, sorted(costs)))} tokens, and {tokens} is asked for; measure with --tokens {tokens}"
        )
    below, above = max(each for each in costs if each < tokens), min(each for each in costs if each > tokens)
    low, high = costs[below].value, costs[above].value
    value = low + (high - low) * (tokens - below) / (above - below)
    bent = max(low, high * tokens / above)
    spread = max(costs[below].error or 0.0, costs[above].error or 0.0)
    return Estimate(value, max(spread, abs(bent - value) / value))


def _reaches(costs: dict[int, Estimate], tokens: int) -> bool:
    return min(costs) <= tokens <= max(costs)


def _fitted(known: dict[Shape, Estimate], shape: Shape) -> Estimate:
    sizes = [float(rows * columns) for rows, columns in known]
    values = [each.value for each in known.values()]
    start, slope = _line(sizes, values)
    missed = []
    for left_out in range(len(sizes)):
        others = [index for index in range(len(sizes)) if index != left_out]
        a, b = _line([sizes[index] for index in others], [values[index] for index in others])
        missed.append(abs(a + b * sizes[left_out] - values[left_out]) / values[left_out])
    return Estimate(start + slope * shape[0] * shape[1], max(missed))


def _line(sizes: Sequence[float], values: Sequence[float]) -> tuple[float, float]:
    """Start and slope, neither negative, with the least sum of squared relative errors."""
    ones, slopes = [1 / value for value in values], [size / value for size, value in zip(sizes, values, strict=True)]
    aa, bb = _dot(ones, ones), _dot(slopes, slopes)
    ab, a, b = _dot(ones, slopes), sum(ones), sum(slopes)
    determinant = aa * bb - ab * ab
    if determinant > 1e-12 * aa * bb:
        start, slope = (a * bb - b * ab) / determinant, (b * aa - a * ab) / determinant
        if start >= 0 and slope >= 0:
            return start, slope
        if slope < 0:
            return a / aa, 0.0
    return 0.0, b / bb


def _dot(left: Sequence[float], right: Sequence[float]) -> float:
    return sum(one * other for one, other in zip(left, right, strict=True))


def _in_proportion(points: Points, product: Product, known: dict[Shape, Estimate]) -> Estimate | None:
    """From the nearest measured shape; None where no other format was measured at both shapes."""
    shape, size = (product.rows, product.columns), product.rows * product.columns
    for near in sorted(known, key=lambda each: abs(math.log(each[0] * each[1] / size))):
        ratios = [
            at_tokens(costs[shape], product).value / at_tokens(costs[near], product).value
            for costs in points.values()
            if all(each in costs and _reaches(costs[each], product.tokens) for each in (shape, near))
        ]
        if ratios:
            ratio = statistics.median(ratios)
            error = max(abs(each / ratio - 1) for each in ratios) if len(ratios) > 1 else None
            return Estimate(known[near].value * ratio, error)
    return None
