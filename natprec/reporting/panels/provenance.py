"""Where every number comes from: files with their checksums, text, seed, versions, command."""

from __future__ import annotations

from typing import Any

from natprec.reporting.elements import Content, Markup, joined, table

SHOWN = (
    "estimator", "rounding", "transforms", "sites", "seed", "data", "data_digest", "sequences", "length", "parts",
    "products", "storage_dtype", "rotation",
)  # fmt: skip


def provenance_panel(data: dict[str, Any]) -> Markup:
    """Three tables."""
    files = [(name, checksum or "–") for name, checksum in data["files"].items()]
    parts = [table("Files", ("file", "checksum"), files)]
    if data["measured"] is not None:
        header = data["measured"]
        parts.append(
            table("Measurement", ("what", "value"), [(name, _text(header[name])) for name in SHOWN if name in header])
        )
    for title, found in (("Plan", data["plan"]), ("Verification", data["verification"])):
        if found is not None and found.get("provenance"):
            parts.append(table(title, ("what", "value"), list(_flat(found["provenance"]))))
    model: list[tuple[Content, ...]] = [
        ("model", data["title"]),
        ("digest of its weights", data["plan"]["model_digest"]),
        ("engine", data["plan"]["engine"]),
    ]
    return joined([table("Model", ("what", "value"), model), *parts])


def _flat(value: dict[str, Any], before: str = "") -> list[tuple[str, str]]:
    rows: list[tuple[str, str]] = []
    for name, each in value.items():
        if isinstance(each, dict):
            rows += _flat(each, f"{before}{name} ")
        elif each is not None:
            rows.append((f"{before}{name}".replace("_", " "), _text(each)))
    return rows


def _text(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(_text, value))
    if isinstance(value, dict):
        return ", ".join(f"{name} {_text(each)}" for name, each in value.items())
    return "–" if value is None else str(value)
