"""All sites in a table that sorts by any column; a site's button shows its curve."""

from __future__ import annotations

from typing import Any

from natprec.reporting.elements import Content, Markup, element, table

HEADERS = ("site", "weights", "format", "bits stored", "b* forward", "b* backward", "predicted")


def sites_panel(data: dict[str, Any]) -> Markup:
    """Dearest first."""
    order = sorted(range(len(data["sites"])), key=lambda number: -data["sites"][number]["kl"])
    return table(
        f"Sites, by predicted {data['distortion']['label']}",
        HEADERS,
        [_row(number, data["sites"][number]) for number in order],
        (1, 3, 4, 5, 6),
        kind="sortable",
    )


def _row(number: int, site: dict[str, Any]) -> tuple[Content, ...]:
    return (
        element("button", site["name"], type="button", data_site=number),
        site["elements"],
        element("span", site["format"] or "16 bits", data_format=number),
        f"{site['stored_bits']:.3f}",
        _bits(site["natural_bits"]),
        _bits(site["backward_bits"]),
        f"{site['kl']:.3g}",
    )


def _bits(value: int | None) -> str:
    return "–" if value is None else str(value)
