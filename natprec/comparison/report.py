"""The comparison as a table of at most 80 columns; compare.json has every figure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table

from natprec.comparison.ratios import by_method, mean_and_spread
from natprec.pipeline.summary import natural_line
from natprec.utils.human import human_bytes, human_seconds

COLUMNS = ("method", "bits", "KL", "perplexity", "same top", "stored", "time")

PAIRED = ("method", "bits", "stored", "D", "natprec", "ratio")
"""Of models that read no text: what each method costs, and natprec at its bytes."""

IMAGES = ("images", "natprec")
"""Of those that draw: how far their images are."""


def comparison_table(report: dict[str, Any]) -> RenderableType:
    """Rows that succeeded, by KL; then the others with their reasons; then the proxies."""
    if "images" in report:
        return paired_table(report)
    table = _table(COLUMNS)
    good = [row for row in report["rows"] if row["status"] == "ok"]
    for rows in sorted(by_method(good).values(), key=lambda rows: mean_and_spread(rows)[0]):
        table.add_row(*_cells(rows), style="bold green" if is_own(rows[0]) else "")
    parts: list[RenderableType] = [table, *_reasons(report)]
    natural = [_natural_line(row) for row in good if row.get("natural_bits") and row.get("perplexity_reference")]
    below = [_ratio_line(found) for found in report["ratios"]]
    return Group(*parts, "", *below, *_proxy_lines(report["proxies"]), *natural)


def paired_table(report: dict[str, Any]) -> RenderableType:
    """Each method that succeeded, by its bits, beside natprec at its bytes; then the others with their reasons."""
    drawn = bool(report["images"])
    table = _table((*PAIRED, *IMAGES) if drawn else PAIRED)
    good = [row for row in report["rows"] if row["status"] == "ok"]
    ours = {row["beside"]: row for row in good if is_own(row)}
    for row in sorted((row for row in good if not is_own(row)), key=lambda row: row["stored_bits"]):
        own = ours.get(f"{row['method']} {row['bits']}")
        images = [None if each is None else each["image_error"] for each in (row, own)] if drawn else []
        table.add_row(
            row["method"],
            f"{row['stored_bits']:.2f}",
            human_bytes(row["stored_bytes"]),
            f"{row['kl_mean']:.3g}",
            "-" if own is None else f"{own['kl_mean']:.3g}",
            "-" if own is None else f"{own['kl_mean'] / row['kl_mean']:.3f}",
            *("-" if each is None else f"{each:.2e}" for each in images),
        )
    below = f"D: {report['distortion']}" + ("; images: mean squared difference" if drawn else "")
    return Group(table, "", below, *_reasons(report))


def _table(columns: Sequence[str]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for number, column in enumerate(columns):
        table.add_column(column, justify="left" if number == 0 else "right", no_wrap=True)
    return table


def _reasons(report: dict[str, Any]) -> list[RenderableType]:
    """Why rows failed."""
    failed = [row for row in report["rows"] if row["status"] != "ok"]
    if not failed:
        return []
    reasons = Table(box=None, pad_edge=False, show_header=False)
    reasons.add_column(no_wrap=True)
    reasons.add_column(overflow="fold")
    for row in failed:
        reasons.add_row(f"{row['method']} {row['bits']}", row["status"])
    return ["", reasons]


def is_own(row: dict[str, Any]) -> bool:
    """Whether a row is natprec's."""
    return str(row["method"]).startswith("natprec")


def _cells(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Of one method at one width: KL is the mean over seeds, with what it varies by; the rest is the first seed's."""
    row, (mean, spread) = rows[0], mean_and_spread(rows)
    return [
        row["method"],
        str(row["bits"]),
        f"{mean:.4f}" if spread is None else f"{mean:.4f}±{spread:.4f}",
        "-" if row["perplexity"] is None else f"{row['perplexity']:.2f}",  # an encoder has none
        "-" if row["top1_agreement"] is None else f"{row['top1_agreement']:.1%}",
        human_bytes(row["stored_bytes"]),
        human_seconds(row["seconds"]),
    ]


def _ratio_line(found: dict[str, Any]) -> str:
    low, high = found["ci95"]
    return (
        f"{found['method']} {found['bits']} is at {found['ratio']:.3f} of {found['peer']} "
        f"(95 %: {low:.3f} to {high:.3f})"
    )


def _natural_line(row: dict[str, Any]) -> str:
    return f"{row['method']} {row['bits']}: {natural_line(row['natural_bits'], row['perplexity_reference'])}"


def _proxy_lines(proxies: dict[str, dict[str, Any]]) -> list[str]:
    """How each proxy orders the rows; none where there are too few of them."""
    return [
        f"{name} orders {found['rows']} rows as KL does: {found['spearman']:.2f} "
        f"(95 %: {found['ci95'][0]:.2f} to {found['ci95'][1]:.2f})"
        for name, found in proxies.items()
        if found["spearman"] is not None
    ]
