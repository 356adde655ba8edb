"""A report for a terminal. Without a counter the word ESTIMATE stands in each line that has a joule."""

from __future__ import annotations

from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table

from natprec.energy.convert import WORD, kwh_per_million

NONE = "-"


def tables(report: dict[str, Any]) -> RenderableType:
    """Rows, comparison, floors, published rows."""
    estimated = report["source"] == WORD
    parts: list[RenderableType] = [_heading(report), "", _rows(report["rows"], estimated), ""]
    parts += [_compared(each) for each in report["comparison"]]
    parts += [_floors(report["rows"], estimated), "", _erased(report, estimated), ""]
    parts += [_assumptions(report["assumptions"])] if report["assumptions"] else []
    parts += [f"refused: {reason}" for reason in report["refused"]]
    parts += [_published(report["published"])]
    return Group(*parts)


def arithmetic_lines(report: dict[str, Any]) -> list[str]:
    """A rate and a power alone."""
    row = report["rows"][0]
    lines = [
        f"{row['tokens_per_second']:g} tokens/s at {row['watts']:g} W: {row['joules_per_token']:.4g} J/token, "
        f"{row['tokens_per_wh']:.4g} tokens/Wh, {row['kwh_per_million_tokens']:.3g} kWh per million tokens"
    ]
    if row["cost_per_million"]:
        lines.append(f"{row['cost_per_million']['value']:.3g} {row['cost_per_million']['currency']} per million tokens")
    if row["co2_grams_per_million"] is not None:
        lines.append(f"{row['co2_grams_per_million']:.4g} g CO2e per million tokens")
    return lines


def check_lines(found: dict[str, Any]) -> list[str]:
    """Published rows against the floors."""
    return [
        f"{found['consistent']} of {found['rows']} rows: watts / (tokens per second) is their J/token within 0.1 %",
        f"{found['above_floors']} of {found['rows']} rows lie above the floors; the bytes moved explain "
        f"{found['largest_share_of_bytes_floor']:.3f} of a row's joules at most, "
        f"{found['median_share_of_bytes_floor']:.3f} in the median",
        *(
            f"row {each['row']} ({each['model']}, {each['gpu']}): {'; '.join(each['faults'])}"
            for each in found["faults"]
        ),
    ]


def _heading(report: dict[str, Any]) -> str:
    run, counter = report["run"], report["counter"]
    threads = run["machine"]["threads"]
    where = run["machine"]["gpu"] or f"{run['machine']['cpu']}, {threads} thread{'s' * (threads > 1)}"
    if counter is None:
        why = "; ".join(run["absent"]) or "none was asked for"
        return f"{run['model']} on {where}\n{WORD}: no energy counter ({why})"
    left_out = f", without {', '.join(counter['excluded'])}" if counter["excluded"] else ""
    idle = report["idle_watts"]
    rest = "idle power not measured" if idle is None else f"{idle:.1f} W idle, which the net column leaves out"
    source = f"measured by {counter['kind']} ({counter['name']}): {counter['scope']}{left_out}"
    return "\n".join([f"{run['model']} on {where}", f"{source}; {rest}", *counter["notes"]])


def _rows(rows: list[dict[str, Any]], estimated: bool) -> Table:
    word = f" ({WORD})" if estimated else ""
    columns: dict[str, list[str]] = {
        "": [row["of"] for row in rows],
        "phase": [row["phase"] for row in rows],
        "batch": [str(row["batch"]) for row in rows],
        "tokens/s": [f"{row['tokens_per_second']:.1f}" for row in rows],
        "W": [_number(row["watts"]) for row in rows],
        f"J/token{word}": [_either(row["joules_per_token"], row["joules_per_token_interval"]) for row in rows],
        "95 %": [_interval(row["joules_per_token_ci95"]) for row in rows],
        "net J": [_number(row["joules_per_token_net"]) for row in rows],
        f"tokens/Wh{word}": [_either(row["tokens_per_wh"], row["tokens_per_wh_interval"]) for row in rows],
        f"kWh/M{word}": [
            _either(row["kwh_per_million_tokens"], row["kwh_per_million_tokens_interval"]) for row in rows
        ],
        "bits/J": [_number(row["bits_of_choice_per_joule"]) for row in rows],
        "cost/M": [_cost(row["cost_per_million"]) for row in rows],
        "CO2/M": [_number(row["co2_grams_per_million"], " g") for row in rows],
    }
    return _table({name: cells for name, cells in columns.items() if not name or set(cells) != {NONE}}, left=2)


def _compared(each: dict[str, Any]) -> str:
    where = f"{each['phase']}, batch {each['batch']}"
    if each["joules_ratio"] is None:
        return f"{where}: {each['verdict']}: {each['reason']}"
    ratio = f"{each['joules_ratio']:.3f} × the original's energy per token"
    return f"{where}: the checkpoint takes {ratio} ({each['verdict']})"


def _floors(rows: list[dict[str, Any]], estimated: bool) -> Table:
    """Floors in joules, and as the most tokens that a watt-hour can give."""
    word = f", beside an {WORD}" if estimated else ""
    floors, most = [row["floor"] for row in rows], [row["floor"]["greatest_tokens_per_wh"] for row in rows]
    columns = {
        "floors": [f"{row['of']} ({WORD})" if estimated else row["of"] for row in rows],
        "phase": [row["phase"] for row in rows],
        "batch": [str(row["batch"]) for row in rows],
        f"Landauer J{word}": [_number(each["landauer_joules"]) for each in floors],
        "bytes J": [_number(each["bytes_joules"]) for each in floors],
        "roofline s": [_number(each["roofline_seconds"]) for each in floors],
        "most tokens/Wh: Landauer": [_number(each["landauer"]) for each in most],
        "bytes": [_number(each["bytes"]) for each in most],
        "roofline": [_number(each["roofline"]) for each in most],
        "most bits/J": [_number(_tightest(each["greatest_bits_per_joule"])) for each in floors],
    }
    return _table(columns, left=2)


def _tightest(most: dict[str, float | None]) -> float | None:
    """The least that any floor allows."""
    return min((each for each in most.values() if each is not None), default=None)


def _erased(report: dict[str, Any], estimated: bool) -> Table:
    """From erased bits to joules, at the first batch of each model, and what share of the token's cost that is."""
    columns: dict[str, list[str]] = {
        f"erased for a token ({WORD})" if estimated else "erased for a token": [], "bits": [], "at least, J": [],
        "of the token's cost": [],
    }  # fmt: skip
    shown: set[str] = set()
    for each in report["erased_bits"]:
        if each["of"] in shown:
            continue
        shown.add(each["of"])
        row = next(row for row in report["rows"] if all(row[key] == each[key] for key in ("of", "phase", "batch")))
        moved = {"erased": "bytes moved", "bits_per_token": None, "joules_per_token": each["bytes_joules"]}
        for step in [*each["steps"], moved]:
            joules = step["joules_per_token"]
            cells = (
                f"{each['of']}, batch {each['batch']}: {step['erased']}", _number(step["bits_per_token"]),
                _number(joules), _share(joules, row, estimated),
            )  # fmt: skip
            for column, cell in zip(columns.values(), cells, strict=True):
                column.append(cell)
    return _table(columns, left=1)


def _table(columns: dict[str, list[str]], left: int) -> Table:
    """Columns by their headings, the first `left` of them words."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for number, header in enumerate(columns):
        table.add_column(header, justify="left" if number < left else "right", no_wrap=True)
    for cells in zip(*columns.values(), strict=True):
        table.add_row(*cells)
    return table


def _share(joules: float | None, row: dict[str, Any], estimated: bool) -> str:
    interval = row["joules_per_token_interval"]
    if joules is not None and interval is not None:
        return f"{WORD} {joules / interval[1]:.1e} to {joules / interval[0]:.1e}"
    if joules is not None and row["joules_per_token"] is not None:
        return f"{joules / row['joules_per_token']:.1e}"
    return WORD if estimated else NONE


def _assumptions(assumptions: list[dict[str, Any]]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column(f"the {WORD} rests on", no_wrap=True)
    for header in ("low", "high"):
        table.add_column(header, justify="right", no_wrap=True)
    for header in ("unit", "basis", "source"):
        table.add_column(header, no_wrap=header != "source")
    for each in assumptions:
        unit = f"{each['unit']} ({WORD})"
        table.add_row(each["name"], _number(each["low"]), _number(each["high"]), unit, each["basis"], each["source"])
    return table


def _published(published: dict[str, Any]) -> RenderableType:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for header in ("published, GPUs alone", "weights", "GPUs"):
        table.add_column(header, no_wrap=True)
    for header in ("tokens/Wh: batch 8", "64", "largest", "kWh/M = a", "+ b / batch"):
        table.add_column(header, justify="right", no_wrap=True)
    for each in published["models"]:
        rates = dict(zip([round(batch / 8) * 8 for batch in each["batches"]], each["tokens_per_wh"], strict=True))
        largest = f"{each['tokens_per_wh'][-1]:.0f} ({each['batches'][-1]:.0f})"
        table.add_row(
            each["model"].partition("/")[2], each["precision"], f"{each['gpus']} × {each['gpu']}",
            _number(rates.get(8)), _number(rates.get(64)), largest, _number(kwh_per_million(each["fit"]["a"])),
            _number(kwh_per_million(each["fit"]["b"])),
        )  # fmt: skip
    founding = "; ".join(
        f"{each['name']}: {each['tokens_per_second']:g} tokens/s at {each['watts']:g} W, {each['tokens_per_wh']:.0f} "
        "tokens/Wh"
        for each in published["founding"]
    )
    return Group(table, f"assumed when the project began, not measured: {founding}", f"source: {published['source']}")


def _either(value: float | None, interval: list[float] | None) -> str:
    if interval is not None:
        return f"{WORD} {_interval(interval)}"
    return _number(value)


def _interval(interval: list[float] | None) -> str:
    return NONE if interval is None else f"{_number(interval[0])} to {_number(interval[1])}"


def _cost(cost: dict[str, Any] | None) -> str:
    return NONE if cost is None else f"{cost['value']:.3g} {cost['currency']}"


def _number(value: float | None, unit: str = "") -> str:
    if value is None:
        return NONE
    return (f"{value:.0f}" if 1000 <= abs(value) < 1e6 else f"{value:.3g}") + unit
