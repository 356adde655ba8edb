"""The theory's claims, each with what the files say of it: holds, does not hold, or not measured."""

from __future__ import annotations

import math
from statistics import median
from typing import Any

from natprec.reporting.elements import Content, Markup, table

HOLDS, FAILS, UNKNOWN = "holds", "does not hold", "not measured"
NEAR = 1.25
"""Measured over predicted, or Fisher over exact, within which a prediction counts as good."""


def claims_panel(data: dict[str, Any]) -> Markup:
    """One row for each claim."""
    rows = [
        claim(data)
        for claim in (_fisher, _sharing, _promise, _prediction, _dual, _entropy, _boundaries, _order, _floors)
    ]
    return table(
        "Claims of the theory and what was measured", ("claim", "statement", "measured", "outcome"), rows, kind="prose"
    )


Row = tuple[Content, ...]


def _fisher(data: dict[str, Any]) -> Row:
    ratios = [fisher / exact for _, _, fisher, exact in data["checks"] if exact > 0]
    statement = "one backward pass estimates what replacing a site measures"
    if not ratios:
        return ("T2", statement, "no site was checked exactly", UNKNOWN)
    middle = median(ratios)
    good = 1 / NEAR <= middle <= NEAR
    text = f"Fisher over exact {min(ratios):.2f} to {max(ratios):.2f}, median {middle:.2f}, {len(ratios)} sites"
    return ("T2", statement, text, HOLDS if good else FAILS)


def _sharing(data: dict[str, Any]) -> Row:
    plan, statement = data["plan"], "widths that follow the measurement beat one width of the same bytes"
    if plan["uniform"] is None:
        return ("T5", statement, "no single format is as small", UNKNOWN)
    text = f"predicted {plan['kl_predicted']:.4g}; {plan['uniform']} throughout {plan['kl_uniform']:.4g}"
    return ("T5", statement, text, HOLDS if plan["kl_predicted"] <= plan["kl_uniform"] else FAILS)


def _promise(data: dict[str, Any]) -> Row:
    found, statement = data["verification"], "the promise holds on held-out text"
    if found is None or found["eps"] is None:
        return ("T6", statement, "no promise was verified", UNKNOWN)
    text = f"{found['kl_mean']:.4g} measured, {found['eps']:.4g} promised"
    return ("T6", statement, text, HOLDS if found["passed"] else FAILS)


def _prediction(data: dict[str, Any]) -> Row:
    found, statement = data["verification"], "the sum over sites predicts the distortion of the whole model"
    if found is None or not found["kl_predicted"]:
        return ("T2b", statement, "no prediction was verified", UNKNOWN)
    ratio = found["kl_mean"] / found["kl_predicted"]
    good = 1 / NEAR <= ratio <= NEAR
    return ("T2b", statement, f"measured is {ratio:.2f} × predicted", HOLDS if good else FAILS)


def _dual(data: dict[str, Any]) -> Row:
    known = [site for site in data["sites"] if site["natural_bits"] is not None and site["backward_bits"] is not None]
    statement = "the flows differ: the backward flow needs other widths than the forward flow"
    if not known:
        return ("T4", statement, "b* of one flow alone", UNKNOWN)
    total = sum(site["elements"] for site in known)
    more = sum(site["elements"] for site in known if site["backward_bits"] > site["natural_bits"])
    fewer = sum(site["elements"] for site in known if site["backward_bits"] < site["natural_bits"])
    text = f"backward needs more bits at {more / total:.0%} of the weights, fewer at {fewer / total:.0%}"
    return ("T4", statement, text, HOLDS if more + fewer else FAILS)


def _entropy(data: dict[str, Any]) -> Row:
    found, bits = data["verification"], data["natural_bits"]
    statement = "mean natural precision beside the entropy of the next token: a comparison, not a law"
    if found is None or bits is None or not found["perplexity_reference"]:
        return ("T17", statement, "no perplexity was measured", UNKNOWN)
    return ("T17", statement, f"{bits:.2f} bits per weight; {math.log2(found['perplexity_reference']):.2f} bits", "")


def _boundaries(data: dict[str, Any]) -> Row:
    statement = "a boundary is free where rounding is injective on the codes that occur"
    if data["inspection"] is None:
        return ("T7–T9", statement, "natprec inspect --plan plan.json --out DIR", UNKNOWN)
    found = data["inspection"]["totals"]
    text = f"{found['free']} of {found['boundaries']} are free; {found['erased_bits']:.4g} bits erased"
    return ("T7–T9", statement, f"{text}, at least {found['landauer_joules']:.3g} J", "")


def _order(data: dict[str, Any]) -> Row:
    statement = "the entropy of values orders b* (refuted on language models)"
    found = None if data["inspection"] is None else data["inspection"]["entropy_orders_b_star"]
    if not found:
        return ("T15", statement, "natprec inspect --out DIR", UNKNOWN)
    text = ", ".join(f"{kind} {value:+.2f}" for kind, value in found.items() if value is not None)
    return ("T15", statement, f"rank correlation: {text}", "")


def _floors(data: dict[str, Any]) -> Row:
    statement = "the energy of a token lies above Landauer's floor"
    if data["energy"] is None:
        return ("T22", statement, "natprec energy DIR --out energy.json", UNKNOWN)
    if data["energy"].get("source") != "measured":
        return ("T22", statement, "ESTIMATE: joules were not measured", UNKNOWN)
    rows = [row for row in data["energy"]["rows"] if row.get("joules_per_token") and row.get("floor")]
    above = all(row["joules_per_token"] >= (row["floor"].get("landauer_joules") or 0) for row in rows)
    return ("T22", statement, f"{len(rows)} rows", HOLDS if rows and above else FAILS if rows else UNKNOWN)
