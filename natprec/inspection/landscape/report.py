"""The landscape as a table and as JSON: claim beside measurement, every place shown."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from natprec.inspection.landscape.bits import LEVEL, Bits
from natprec.inspection.landscape.claims import DEPENDS, FEWER, HOLDS, REFUTED, SUPPORTED
from natprec.inspection.landscape.measure import FLOW_WIDTHS, TOLERANCES, Found, Row, shapes

if TYPE_CHECKING:
    from rich.console import RenderableType

COLOURS = {SUPPORTED: "green", REFUTED: "red", DEPENDS: "yellow"}

DEFINITION = (
    "b* of a place: mean over its tensors of the fewest bits at which the tensor alone, rounded, keeps the squared "
    "error of the output within the tolerance (T1); 'in a plan': weights in natprec's plan of fewest bytes in which "
    "all weights of the network together keep it"
)
GAUGE = "as the weights are stored: nothing rotated, nothing rescaled"
FLOWING = "uniform, from least to largest value; one grid for an image's values at the place unless its name says more"


def to_json(found: Sequence[Found], rows: Sequence[Sequence[Row]], missing: Sequence[str]) -> dict[str, Any]:
    """The object that `natprec landscape --json` prints.

    Args:
        rows: those of each network; missing: sentences on networks that could not be had.
    """
    return {
        "definition": DEFINITION,
        "tolerances_db": list(TOLERANCES),
        "interval": LEVEL,
        "quantizers": {"weights": _weights(found), "activations": FLOWING},
        "gauge": GAUGE,
        "seeds": list(found[0].seeds) if found else [],
        "rows": [_row(row) for several in rows for row in several],
        "shapes": [each for one, several in zip(found, rows, strict=True) for each in shapes(one, several)],
        "networks": [_network(each) for each in found],
        "missing": list(missing),
    }


def _weights(found: Sequence[Found]) -> str:
    names = [name for each in found[:1] for name in each.formats]
    return "round to nearest, one scale for each output channel: " + ", ".join(names)


def _row(row: Row) -> dict[str, Any]:
    return {
        "network": row.network,
        "place": row.place.name,
        "claim_bits": [row.place.claim.low, row.place.claim.high],
        "weights": None if row.weights is None else _by_tolerance(row.weights),
        "activations": _by_tolerance(row.activations),
        "needs": _by_tolerance(row.needs),
        "at": {str(decibels): what for decibels, what in row.at.items()},
        "verdict": row.verdict,
        "verdict_of_each_seed": row.by_seed,
        "tensors": len(row.place.layers),
        "weights_in_a_plan": None if row.planned is None else dict(zip(map(str, TOLERANCES), row.planned, strict=True)),
    }


def _by_tolerance(several: Sequence[Bits]) -> dict[str, Any]:
    found = {}
    for decibels, bits in zip(TOLERANCES, several, strict=True):
        low, high = bits.interval
        found[str(decibels)] = {"bits": bits.mean, "low": low, "high": high, "largest": bits.largest}
    return found


def _network(found: Found) -> dict[str, Any]:
    return {
        "name": found.network.name,
        "about": found.network.about,
        "samples_per_seed": found.images,
        "peak": found.peak,
        "widths_of_weights": list(found.widths),
        "widths_of_activations": list(FLOW_WIDTHS),
        "checks_of_activations": found.checks,
        "checks_of_weights": [
            {"layer": site, "format": fmt, "estimate": estimate, "exact": exact}
            for site, fmt, estimate, exact in found.checks_of_weights
        ],
        "seconds": found.seconds,
    }


def tables(value: dict[str, Any]) -> RenderableType:
    """The same for people: a table of places for each network, then the claims of shape, and what is missing."""
    from rich.console import Group
    from rich.text import Text

    parts: list[Any] = []
    for network in value["networks"]:
        parts += [_places(network, [row for row in value["rows"] if row["network"] == network["name"]]), ""]
    for shape in value["shapes"]:
        line = Text(f"{shape['network']}: {shape['claim']}: ")
        line.append(shape["verdict"], COLOURS[shape["verdict"]])
        line.append(f" (by {_three(shape['difference'], ', ')} bits at {_decibels()} dB)")
        parts.append(line)
    counts = {word: sum(row["verdict"] == word for row in value["rows"]) for word in COLOURS}
    parts.append("Of the places " + ", ".join(f"{count} {word}" for word, count in counts.items()) + ".")
    changed = [
        f"{row['network']}, {row['place']}" for row in value["rows"] if len(set(row["verdict_of_each_seed"])) > 1
    ]
    seeds = f"Each of the seeds {', '.join(map(str, value['seeds']))} alone gives the same verdicts"
    if len(value["seeds"]) > 1:
        parts.append(f"{seeds}, but for {'; '.join(changed)}." if changed else f"{seeds}.")
    parts += [f"{value['definition']}.", f"Weights: {value['quantizers']['weights']}."]
    parts += [f"What flows: {value['quantizers']['activations']}. Gauge: {value['gauge']}.", *value["missing"]]
    return Group(*parts)


def _places(network: dict[str, Any], rows: Sequence[dict[str, Any]]) -> RenderableType:
    from rich.table import Table
    from rich.text import Text

    table = Table(title=f"{network['name']}: {network['about']}", title_justify="left")
    table.add_column("place", overflow="fold")
    heads = "weights", "activations", "in a plan"
    for head in ("claim", *(f"{each}, {_decibels()} dB" for each in heads), "verdict"):
        table.add_column(head, justify="left" if head == "verdict" else "right", no_wrap=head == "claim")
    for row in rows:
        low, high = row["claim_bits"]
        claim = f"{low:g}" if low == high else f"{low:g}–{high:g}"
        verdict = Text(row["verdict"], COLOURS[row["verdict"]])
        verdict.append(_how(row))
        table.add_row(row["place"], claim, _three(row["weights"]), _three(row["activations"]), _plan(row), verdict)
    return table


def _plan(row: dict[str, Any]) -> str:
    planned = row["weights_in_a_plan"] or {}
    return "\n".join("none" if bits is None else f"{bits:.1f}" for bits in planned.values())


def _how(row: dict[str, Any]) -> str:
    """Where the claim holds, or in which direction it fails."""
    kept = [decibels for decibels, what in row["at"].items() if what == HOLDS]
    if row["verdict"] == DEPENDS and not kept:
        last = max(int(decibels) for decibels, what in row["at"].items() if what == FEWER)
        return f": holds between {last} and {min(each for each in TOLERANCES if each > last)} dB"
    if row["verdict"] == DEPENDS:
        return f": holds at {', '.join(kept)} dB"
    return "" if kept else f": {next(iter(row['at'].values()))} bits"


def _three(several: dict[str, Any] | None, between: str = "\n") -> str:
    if several is None:
        return ""
    return between.join(f"{each['bits']:.1f} ({each['low']:.1f} to {each['high']:.1f})" for each in several.values())


def _decibels() -> str:
    return ", ".join(map(str, TOLERANCES))
