"""The precision landscape: kinds of sites by depth, the bits that each got, b* beside them; and the slider over it."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

from natprec.reporting.elements import Content, Markup, element, joined, missing, table
from natprec.utils.human import human_bytes, human_count


def landscape_panel(data: dict[str, Any]) -> Markup:
    """The table whose cells the slider changes. A cell of several sites (experts) shows their range."""
    cells: dict[str, dict[int | None, list[int]]] = defaultdict(lambda: defaultdict(list))
    for number, site in enumerate(data["sites"]):
        cells[site["kind"]][site["block"]].append(number)
    blocks = sorted({site["block"] for site in data["sites"] if site["block"] is not None})
    columns: list[int | None] = [*blocks, *([None] if any(None in row for row in cells.values()) else [])]
    head = element(
        "tr",
        element("th", "site", scope="col"),
        *(element("th", "–" if block is None else block, scope="col") for block in columns),
    )
    body = [
        element("tr", element("th", kind, scope="row"), *(_cell(data, row.get(block, [])) for block in columns))
        for kind, row in cells.items()
    ]
    caption = "Bits by kind of site (rows) and block (columns); the small figure is b*, the bits that the site needs"
    made = element("table", element("caption", caption), element("thead", head), element("tbody", *body), kind="map")
    return joined(
        [
            element("div", made, kind="wide", tabindex="0", role="region", aria_label=caption),
            _legend(data),
            element("p", "Point at a cell, or choose a site below, to see its curve.", kind="hint", id="curve-hint"),
            element("div", kind="curve", id="curve", aria_live="polite"),
        ]
    )


def _cell(data: dict[str, Any], numbers: list[int]) -> Markup:
    if not numbers:
        return element("td")
    sites = [data["sites"][number] for number in numbers]
    bits = sorted({site["bits"] for site in sites})
    stars = sorted({site["natural_bits"] for site in sites if site["natural_bits"] is not None})
    return element(
        "td",
        element("span", span(bits), kind="bits"),
        element("sub", span(stars)) if stars else None,
        kind=f"b{bits[-1]}",
        data_sites=" ".join(map(str, numbers)),
    )


def span(values: list[int]) -> str:
    """One value, or the range of several.

    >>> span([4]), span([3, 4, 6])
    ('4', '3–6')
    """
    return str(values[0]) if len(values) == 1 else f"{values[0]}–{values[-1]}"


def _legend(data: dict[str, Any]) -> Markup:
    counts = data["widths"]
    total = sum(counts.values())
    entries = (
        element(
            "li", element("span", bits, kind=f"swatch b{bits}"), f" {human_count(count)} weights, {count / total:.1%}"
        )
        for bits, count in counts.items()
    )
    return element("ul", *entries, kind="legend", id="widths")


def slider_panel(data: dict[str, Any]) -> Markup:
    """The controls that show any other plan of the same measurement."""
    stairs = data["stairs"]
    if stairs is None:
        return missing("The staircase", "natprec quantize --eps E (a tolerance for the whole model)")
    words, plan = data["distortion"], data["plan"]
    label = f"Tolerance, {words['unit']}"
    controls: list[Content] = [
        element(
            "label", label, element("input", type="range", id="slider", min="0", max="1000", step="1", value="500")
        ),
        element("label", "eps ", element("input", type="number", id="eps", min="0", step="any")),
        element("label", "or size, MB ", element("input", type="number", id="size", min="0", step="any")),
        element("button", "back to the plan of this checkpoint", type="button", id="reset"),
    ]
    rows = [
        ("distortion predicted", f"{plan['kl_predicted']:.4g}", element("output", id="now-kl")),
        ("bits per quantized weight", f"{plan['bits_per_weight']:.3f}", element("output", id="now-bits")),
        ("bytes of the checkpoint", human_bytes(plan["stored_bytes"]), element("output", id="now-bytes")),
        (
            "the best single format, predicted",
            "–" if plan["kl_uniform"] is None else f"{plan['kl_uniform']:.4g}",
            element("output", id="now-uniform"),
        ),
    ]
    return joined(
        [
            element("div", *controls, kind="controls"),
            element("p", "", id="slider-note", role="status"),
            table(
                "This checkpoint, and the plan at the slider",
                ("figure", "this checkpoint", "at the slider"),
                rows,
                (1, 2),
            ),
            element(
                "p",
                "The page solves by itself: the plan at any tolerance or size is the one that ",
                element("code", "natprec solve"),
                " gives for this measurement.",
                kind="hint",
            ),
        ]
    )
