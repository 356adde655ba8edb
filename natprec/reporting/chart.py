"""A plot as SVG: one logarithmic axis, lines and labelled points; in the colours of a page, or as a file of its own."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from natprec.reporting.elements import Markup, element

WIDE, HIGH = 760, 380
LEFT, RIGHT, TOP, BOTTOM = 76, 190, 16, 48
GAP = 15
"""Between labels, one above another."""

STYLE = (
    "svg{font:13px sans-serif;background:#fff}text{fill:#333}.axis,.grid,.leader{stroke:#ccc}"
    ".line{stroke:#1f6fb2;stroke-width:2}.point{fill:#1f6fb2}.interval{stroke:#1f6fb2}"
)
"""Of a plot that is no part of a page."""


@dataclass(frozen=True)
class Point:
    """A mark with its interval; `kind` is its class."""

    x: float
    y: float
    label: str
    interval: tuple[float, float] | None = None
    kind: str = ""


@dataclass(frozen=True)
class Chart:
    """Lines and points over two axes, the vertical one logarithmic; values of 0 or less are not drawn."""

    x_label: str
    y_label: str
    lines: Mapping[str, Sequence[tuple[float, float]]]
    points: Sequence[Point]

    def file(self, title: str, note: str) -> str:
        """The picture as a file of its own, with a comment in it."""
        drawn = self.svg(title, element("style", Markup(STYLE)), Markup(note), xmlns="http://www.w3.org/2000/svg")
        return f"{drawn}\n"

    def svg(self, title: str, *before: Markup, xmlns: str | None = None) -> Markup:
        """The picture, as a part of a page."""
        lines = {name: [(x, y) for x, y in line if y > 0] for name, line in self.lines.items()}
        points = [point for point in self.points if point.y > 0]
        xs = [x for line in lines.values() for x, _ in line] + [point.x for point in points]
        ys = [y for line in lines.values() for _, y in line] + [point.y for point in points]
        axes = _Axes(min(xs, default=0.0), max(xs, default=1.0), min(ys, default=0.1), max(ys, default=1.0))
        drawn = [*before, element("title", title), *axes.drawn(self.x_label, self.y_label)]
        for line in lines.values():
            if line:
                drawn.append(
                    element("polyline", kind="line", points=" ".join(axes.at(x, y) for x, y in line), fill="none")
                )
        drawn += [mark for point in points for mark in axes.mark(point)]
        drawn += axes.labels(points)
        size = f"0 0 {WIDE} {HIGH}"
        return element("svg", *drawn, kind="chart", viewBox=size, role="img", aria_label=title, xmlns=xmlns)


class _Axes:
    """From values to places."""

    def __init__(self, left: float, right: float, low: float, high: float) -> None:
        pad = (right - left or abs(right) or 1.0) * 0.04
        self.left, self.right = left - pad, right + pad
        self.low, self.high = math.log10(low) - 0.08, math.log10(high) + 0.08

    def x(self, value: float) -> float:
        return LEFT + (value - self.left) / (self.right - self.left) * (WIDE - LEFT - RIGHT)

    def y(self, value: float) -> float:
        share = (math.log10(value) - self.low) / (self.high - self.low)
        return HIGH - BOTTOM - share * (HIGH - TOP - BOTTOM)

    def at(self, x: float, y: float) -> str:
        return f"{self.x(x):.1f},{self.y(y):.1f}"

    def drawn(self, x_label: str, y_label: str) -> list[Markup]:
        bottom, right = HIGH - BOTTOM, WIDE - RIGHT
        parts = [element("path", kind="axis", d=f"M{LEFT},{TOP}V{bottom}H{right}", fill="none")]
        for value in ticks(self.left, self.right):
            parts.append(_text(self.x(value), bottom + 16, f"{value:g}", "middle"))
        for value in decades(self.low, self.high):
            y = self.y(value)
            parts.append(element("path", kind="grid", d=f"M{LEFT},{y:.1f}H{right}"))
            parts.append(_text(LEFT - 6, y + 4, f"{value:g}", "end"))
        parts.append(_text((LEFT + right) / 2, HIGH - 10, x_label, "middle"))
        middle = (TOP + bottom) / 2
        turned = element(
            "text", y_label, x=14, y=f"{middle:.0f}", text_anchor="middle", transform=f"rotate(-90 14 {middle:.0f})"
        )
        return [*parts, turned]

    def mark(self, point: Point) -> list[Markup]:
        x, y = self.x(point.x), self.y(point.y)
        parts = []
        if point.interval is not None and point.interval[0] > 0:
            low, high = (min(HIGH, max(0.0, self.y(end))) for end in point.interval)
            parts.append(element("path", kind=f"interval {point.kind}", d=f"M{x:.1f},{low:.1f}V{high:.1f}"))
        return [*parts, element("circle", kind=f"point {point.kind}", cx=f"{x:.1f}", cy=f"{y:.1f}", r=4)]

    def labels(self, points: Sequence[Point]) -> list[Markup]:
        """In one column at the right, in the order of the points' heights, with a line to each."""
        parts: list[Markup] = []
        last = -math.inf
        for point in sorted(points, key=lambda each: self.y(each.y)):
            y = max(self.y(point.y), last + GAP)
            last = y
            start = f"M{self.x(point.x) + 5:.1f},{self.y(point.y):.1f}"
            parts.append(element("path", kind="leader", d=f"{start}L{WIDE - RIGHT + 6},{y:.1f}", fill="none"))
            parts.append(_text(WIDE - RIGHT + 10, y + 4, point.label, "start"))
        return parts


def _text(x: float, y: float, text: str, anchor: str) -> Markup:
    return element("text", text, x=f"{x:.1f}", y=f"{y:.1f}", text_anchor=anchor)


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Round values within a range.

    >>> ticks(83.0, 272.0)
    [100.0, 150.0, 200.0, 250.0]
    """
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = min((power * each for each in (1, 2, 5, 10)), key=lambda each: abs(each - rough))
    first = math.ceil(low / step)
    return [round(step * each, 10) for each in range(first, math.floor(high / step) + 1)]


def decades(low: float, high: float) -> list[float]:
    """Values 1, 2, 5 of each power of ten whose logarithm is within a range; powers alone where that is wide.

    >>> decades(-2.0, -0.9)
    [0.01, 0.02, 0.05, 0.1]
    """
    digits = (1, 2, 5) if high - low < 2.5 else (1,)
    values = [float(f"{digit}e{power}") for power in range(math.floor(low), math.ceil(high) + 1) for digit in digits]
    return [value for value in values if low <= math.log10(value) <= high]
