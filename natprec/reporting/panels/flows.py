"""Both flows at each site, and the asymmetry of error: what is lost for good and what is carried for nothing (T18)."""

from __future__ import annotations

from collections import Counter
from typing import Any

from natprec.reporting.elements import Content, Markup, joined, missing, table


def flows_panel(data: dict[str, Any]) -> Markup:
    """b* of the forward flow against b* of the backward flow, weights counted; and bits above and below b*."""
    counts = Counter[tuple[int, int]]()
    for site in data["sites"]:
        if site["natural_bits"] is not None and site["backward_bits"] is not None:
            counts[site["natural_bits"], site["backward_bits"]] += site["elements"]
    if not counts:
        return missing("b* of both flows", "natprec quantize --eps E")
    total = sum(counts.values())
    forward, backward = sorted({each for each, _ in counts}), sorted({each for _, each in counts})
    rows: list[tuple[Content, ...]] = [
        (f"forward {row}", *(_share(counts[row, column], total) for column in backward)) for row in forward
    ]
    return joined(
        [
            table(
                "Weights by b* of the forward flow (rows) and of the backward flow (columns)",
                ("b*", *(f"backward {column}" for column in backward)),
                rows,
                tuple(range(1, len(backward) + 1)),
            ),
            table("Asymmetry of error", ("what", "value"), asymmetry(data), (1,)),
        ]
    )


def _share(count: int, total: int) -> str:
    return f"{count / total:.1%}" if count else ""


def asymmetry(data: dict[str, Any]) -> list[tuple[str, str]]:
    """Of the plan: the tolerance that it spends, and mean bits above and below b*, where b* is known."""
    found, rows = data["budget"], []
    if found["spent"] is not None:
        rows.append(("tolerance spent, predicted", f"{found['spent']:.1%}"))
    if found["weights"]:
        rows.append(("bits per weight carried above b*", f"{found['bits_above_b_star'] / found['weights']:.3f}"))
        rows.append(("bits per weight below b*", f"{found['bits_below_b_star'] / found['weights']:.3f}"))
    return rows
