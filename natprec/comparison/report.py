"""The comparison as a table."""

from __future__ import annotations

from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table

from natprec.pipeline.summary import natural_line
from natprec.utils.human import human_bytes, human_seconds

COLUMNS = ("method", "bits", "KL", "KL p99", "perplexity", "same top", "stored", "bits/w", "time", "memory")


def comparison_table(report: dict[str, Any]) -> RenderableType:
    """Rows that succeeded, by KL; then the others with their reasons; then the proxies."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for number, column in enumerate(COLUMNS):
        table.add_column(column, justify="left" if number == 0 else "right", no_wrap=True)
    good = [row for row in report["rows"] if row["status"] == "ok"]
    for row in sorted(good, key=lambda row: row["kl_mean"]):
        table.add_row(*_cells(row), style="bold green" if is_own(row) else "")
    parts: list[RenderableType] = [table]
    failed = [row for row in report["rows"] if row["status"] != "ok"]
    if failed:
        reasons = Table(box=None, pad_edge=False, show_header=False)
        reasons.add_column(no_wrap=True)
        reasons.add_column(overflow="fold")
        for row in failed:
            reasons.add_row(f"{row['method']} {row['bits']}", row["status"])
        parts += ["", reasons]
    natural = [_natural_line(row) for row in good if row.get("natural_bits") and row.get("perplexity_reference")]
    return Group(*parts, "", *(_proxy_line(name, found) for name, found in report["proxies"].items()), *natural)


def is_own(row: dict[str, Any]) -> bool:
    """Whether a row is natprec's."""
    return str(row["method"]).startswith("natprec")


def _cells(row: dict[str, Any]) -> list[str]:
    per_weight = row["bits_per_weight"]
    return [
        row["method"],
        str(row["bits"]),
        f"{row['kl_mean']:.4f}",
        f"{row['kl_p99']:.3f}",
        "-" if row["perplexity"] is None else f"{row['perplexity']:.2f}",  # an encoder has none
        "-" if row["top1_agreement"] is None else f"{row['top1_agreement']:.1%}",
        human_bytes(row["stored_bytes"]),
        "-" if per_weight is None else f"{per_weight:.3f}",
        human_seconds(row["seconds"]),
        human_bytes(row["peak_bytes"]),
    ]


def _natural_line(row: dict[str, Any]) -> str:
    return f"{row['method']} {row['bits']}: {natural_line(row['natural_bits'], row['perplexity_reference'])}"


def _proxy_line(name: str, found: dict[str, Any]) -> str:
    if found["spearman"] is None:
        return f"{name}: {found['rows']} rows are too few to compare its order with the KL's"
    low, high = found["ci95"]
    return f"{name} orders {found['rows']} rows as KL does: {found['spearman']:.2f} (95 %: {low:.2f} to {high:.2f})"
