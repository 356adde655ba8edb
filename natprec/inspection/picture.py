"""The graph as an SVG: a row for each block, a box for each fused operation, coloured by width.

A bar at a box's left says whether what enters it is rounded for free or erases, one at its right the same of what
leaves it, and one below it the same of its weights. Neighbouring rows that look alike are drawn once.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from html import escape

from natprec.inspection.inspect import Inspection

COLOURS = {
    1: "#440154", 2: "#482878", 3: "#3e4a89", 4: "#31688e", 5: "#26828e", 6: "#1f9e89", 7: "#6ece58", 8: "#b5de2b",
    16: "#e8e8e8",
}  # fmt: skip
"""Width in bits → fill (viridis; 16 bits grey)."""

FREE, ERASES, NONE = "#2e9e4f", "#d03030", "#bbbbbb"
BOX, GAP, HIGH, LEFT, TOP = 112, 14, 24, 150, 64


@dataclass(frozen=True)
class Box:
    """One fused operation; `enters`, `leaves`, `weights`: whether the boundary is free, None where there is none."""

    label: str
    width: int
    enters: bool | None
    leaves: bool | None
    weights: bool | None


def rows_of(inspection: Inspection) -> list[tuple[str, tuple[Box, ...], int]]:
    """(name, boxes, how many blocks look so), in the order of the graph."""
    rows: dict[str, list[Box]] = {}
    for operation, members in inspection.operations.items():
        block = re.match(r".*?\.\d+(?=[.:])", operation)
        name = block[0] if block else operation
        short = [re.sub(r"_proj$", "", member.rpartition(".")[2]) for member in members]
        boundaries = [each for each in inspection.boundaries if each.kind != "weight"]
        box = Box(
            " ".join(short) if members else "attention",
            inspection.widths[operation],
            _verdict([each.free for each in boundaries if each.target_operation == operation]),
            _verdict([each.free for each in boundaries if each.source_operation == operation]),
            _verdict([each.free for each in inspection.boundaries if each.kind == "weight" and each.target in members]),
        )
        rows.setdefault(name, []).append(box)
    merged: list[tuple[str, tuple[Box, ...], int]] = []
    for name, boxes in rows.items():
        if merged and merged[-1][1] == tuple(boxes):
            first, same, count = merged[-1]
            merged[-1] = (first, same, count + 1)
        else:
            merged.append((name, tuple(boxes), 1))
    return merged


def svg(inspection: Inspection, title: str) -> str:
    """The picture as text."""
    rows = rows_of(inspection)
    wide = LEFT + max(4, *(len(boxes) for _, boxes, _ in rows)) * (BOX + GAP) + 20
    high = TOP + len(rows) * (HIGH + GAP) + 20
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{wide}" height="{high}" font-family="sans-serif">',
        f'<rect width="{wide}" height="{high}" fill="white"/>',
        _text(10, 20, title, 14),
        *_legend(),
    ]
    for number, (name, boxes, count) in enumerate(rows):
        y = TOP + number * (HIGH + GAP)
        parts.append(_text(10, y + 16, name if count == 1 else f"{name}  ×{count}", 11))
        for place, box in enumerate(boxes):
            parts += _draw(box, LEFT + place * (BOX + GAP), y)
    return "\n".join([*parts, "</svg>", ""])


def _draw(box: Box, x: int, y: int) -> list[str]:
    dark = box.width <= 6
    return [
        f'<rect x="{x}" y="{y}" width="{BOX}" height="{HIGH}" fill="{COLOURS[box.width]}"/>',
        _bar(x - 5, y, 5, HIGH, box.enters),
        _bar(x + BOX, y, 5, HIGH, box.leaves),
        _bar(x, y + HIGH, BOX, 4, box.weights),
        _text(x + 6, y + 16, f"{box.label[:14]}  {box.width}", 11, "white" if dark else "black"),
    ]


def _legend() -> list[str]:
    parts, x = [], 10
    for bits, colour in COLOURS.items():
        parts.append(f'<rect x="{x}" y="32" width="22" height="16" fill="{colour}"/>')
        parts.append(_text(x + 4, 44, str(bits), 10, "white" if bits <= 6 else "black"))
        x += 24
    parts.append(_text(x + 6, 44, "bits", 10))
    for label, colour in (("free", FREE), ("erases", ERASES)):
        x += 52
        parts.append(f'<rect x="{x}" y="32" width="5" height="16" fill="{colour}"/>')
        parts.append(_text(x + 9, 44, label, 10))
    parts.append(_text(x + 56, 44, "left: enters, right: leaves, below: weights", 10))
    return parts


def _bar(x: int, y: int, wide: int, high: int, free: bool | None) -> str:
    colour = NONE if free is None else FREE if free else ERASES
    return f'<rect x="{x}" y="{y}" width="{wide}" height="{high}" fill="{colour}"/>'


def _text(x: int, y: int, text: str, size: int, colour: str = "black") -> str:
    return f'<text x="{x}" y="{y}" font-size="{size}" fill="{colour}">{escape(text)}</text>'


def _verdict(free: list[bool]) -> bool | None:
    """Free only where all are; None where there are none."""
    return all(free) if free else None
