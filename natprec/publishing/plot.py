"""A small plot as SVG: points on a line, the vertical axis logarithmic. The same points give the same bytes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

from natprec.utils.marks import CARD_MADE_BY

WIDTH, HEIGHT, MARGIN = 640, 360, 64
INK, LINE = "#333", "#1f6fb2"


def scatter(points: Sequence[tuple[str, float, float]], across: str, up: str) -> str:
    """Points (label, x, y), y above 0, joined in their order; what is not above 0 is left out."""
    kept = [(label, x, y) for label, x, y in points if y > 0]
    places = [(label, *place) for (label, _, _), place in zip(kept, _places(kept), strict=True)]
    path = " ".join(f"{x:.1f},{y:.1f}" for _, x, y in places)
    marks = [
        f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="{LINE}"/>'
        f'<text x="{x + 8:.1f}" y="{y - 8:.1f}">{escape(label)}</text>'
        for label, x, y in places
    ]
    ends = _ends([x for _, x, _ in kept], [y for _, _, y in kept]) if kept else []
    bottom, right = HEIGHT - MARGIN, WIDTH - MARGIN
    return "\n".join([
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" '
        f'font-size="13" fill="{INK}">',
        CARD_MADE_BY,
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#fff"/>',
        f'<path d="M{MARGIN} {MARGIN / 2}V{bottom}H{right}" fill="none" stroke="{INK}"/>',
        f'<text x="{WIDTH / 2}" y="{HEIGHT - 16}" text-anchor="middle">{escape(across)}</text>',
        f'<text x="{MARGIN}" y="{MARGIN / 2 - 8}">{escape(up)}, logarithmic</text>',
        *ends,
        f'<polyline points="{path}" fill="none" stroke="{LINE}"/>',
        *marks,
        "</svg>\n",
    ])  # fmt: skip


def _places(points: Sequence[tuple[str, float, float]]) -> list[tuple[float, float]]:
    across = _scaled([x for _, x, _ in points], MARGIN + 16, WIDTH - MARGIN - 32)
    up = _scaled([math.log(y) for _, _, y in points], HEIGHT - MARGIN - 16, MARGIN / 2 + 24)
    return list(zip(across, up, strict=True))


def _scaled(values: Sequence[float], low: float, high: float) -> list[float]:
    """Linear, from the smallest at `low` to the largest at `high`."""
    if not values:
        return []
    least, span = min(values), max(values) - min(values)
    return [low + (high - low) * ((value - least) / span if span else 0.5) for value in values]


def _ends(across: Sequence[float], up: Sequence[float]) -> list[str]:
    """The smallest and largest value of each axis."""
    bottom = HEIGHT - MARGIN + 18
    return [
        f'<text x="{MARGIN + 16}" y="{bottom}" text-anchor="middle">{min(across):.4g}</text>',
        f'<text x="{WIDTH - MARGIN - 32}" y="{bottom}" text-anchor="middle">{max(across):.4g}</text>',
        f'<text x="{MARGIN - 6}" y="{HEIGHT - MARGIN - 12}" text-anchor="end">{min(up):.3g}</text>',
        f'<text x="{MARGIN - 6}" y="{MARGIN / 2 + 28}" text-anchor="end">{max(up):.3g}</text>',
    ]
