"""The page: panels in order, the data block, and the style and scripts that lie beside this file."""

from __future__ import annotations

import json
from collections.abc import Callable
from importlib.resources import files
from typing import Any

from natprec.inspection.picture import COLOURS
from natprec.reporting.data import data_of
from natprec.reporting.elements import Markup, element
from natprec.reporting.panels.claims import claims_panel
from natprec.reporting.panels.flows import flows_panel
from natprec.reporting.panels.landscape import landscape_panel, slider_panel
from natprec.reporting.panels.measured import boundaries_panel, energy_panel, scores_panel
from natprec.reporting.panels.methods import methods_panel
from natprec.reporting.panels.provenance import provenance_panel
from natprec.reporting.panels.sites import sites_panel
from natprec.reporting.panels.verdict import verdict_panel
from natprec.reporting.sources import Sources

PANELS: tuple[tuple[str, str, Callable[[dict[str, Any]], Markup]], ...] = (
    ("verdict", "Verdict", verdict_panel),
    ("slider-panel", "Any other tolerance or size", slider_panel),
    ("landscape", "Precision landscape", landscape_panel),
    ("methods", "Distortion against bytes", methods_panel),
    ("flows", "Both flows, and the asymmetry of error", flows_panel),
    ("claims", "Claims", claims_panel),
    ("scores", "Answers", scores_panel),
    ("energy", "Energy", energy_panel),
)


def page(sources: Sources) -> str:
    """One HTML file; equal sources give equal text."""
    data = data_of(sources)
    sections = [_section(name, title, panel(data)) for name, title, panel in PANELS]
    sections += [
        _section("boundaries", "Boundaries", boundaries_panel(data, sources.picture)),
        _section("sites", "Sites", sites_panel(data)),
        _section("provenance", "Where the numbers come from", provenance_panel(data)),
    ]
    title = f"natprec report: {sources.title}"
    head = [
        element("meta", charset="utf-8"),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("title", title),
        _raw("style", _beside("page.css") + colours()),
    ]
    body = [
        element("main", element("h1", title), *sections),
        _raw("script", _escaped(data), type="application/json", id="natprec"),
        _raw("script", _beside("solver.js") + _beside("page.js")),
    ]
    html = element("html", element("head", *head), element("body", *body), lang="en")
    return f"<!doctype html>\n{html}\n"


def _section(name: str, title: str, content: Markup) -> Markup:
    return element("section", element("h2", title), content, id=name)


def _raw(tag: str, text: str, **attributes: str) -> Markup:
    """A script or style, whose text is not escaped: it must not hold its own end."""
    return element(tag, Markup(text), kind="", **attributes)


def _beside(name: str) -> str:
    return files("natprec.reporting").joinpath(name).read_text(encoding="utf-8")


def _escaped(data: dict[str, Any]) -> str:
    """JSON in which no name can end the script."""
    text = json.dumps(data, allow_nan=False, separators=(",", ":"), ensure_ascii=False)
    return text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")


def colours() -> str:
    """Rules for cells of each width, with the text in black or white, whichever is easier to read."""
    return "".join(
        f".b{bits}{{background:{fill};color:{'#000' if luminance(fill) > 0.179 else '#fff'}}}\n"
        for bits, fill in COLOURS.items()
    )


def luminance(colour: str) -> float:
    """Relative luminance of `#rrggbb` (WCAG 2.2); above 0.179 black text has the larger contrast.

    >>> round(luminance("#ffffff"), 3), round(luminance("#000000"), 3)
    (1.0, 0.0)
    """
    parts = [int(colour[start : start + 2], 16) / 255 for start in (1, 3, 5)]
    red, green, blue = (each / 12.92 if each <= 0.04045 else ((each + 0.055) / 1.055) ** 2.4 for each in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue
