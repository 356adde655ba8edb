"""From what a run has seen to its figures: one object, the same for the same run and counter, whenever it is computed.

J/token = joules / tokens, watts = joules / seconds, so that watts / (tokens per second) = J/token. What is not known is
null. A figure below a floor is no figure: its row says why, and has no joules.
"""

from __future__ import annotations

import statistics
from typing import Any

from natprec.energy import convert
from natprec.energy.anchors import published
from natprec.energy.convert import WORD
from natprec.energy.estimate import Estimate, estimate
from natprec.energy.floors import Floor, floor_of, path_of_erased_bits
from natprec.energy.run import VERSION, Part, Run
from natprec.utils.own_files import sealed
from natprec.utils.statistics import t_interval

LEAST_WINDOWS = 5
"""Windows that a row needs."""

MEASURED = "measured"


def report(run: Run) -> dict[str, Any]:
    """All figures of a run, and the run, as energy.json and `--json` have it."""
    rows, assumptions, refused, erased = [], {}, [], []
    for part in run.parts:
        floor, made = _floor(run, part), None if run.counter is not None else _estimate(run, part)
        row = _row(run, part, floor, made)
        rows.append(row)
        for each in () if made is None else made.assumptions:
            assumptions[each.name] = each.to_json()
        if row["refused"]:
            refused.append(f"{part.of}, {part.phase}, batch {part.batch}: {row['refused']}")
        if part.footprint is not None and part.phase != "prefill":
            weights = 8.0 * part.footprint.weight_bytes / part.batch
            steps = path_of_erased_bits(floor, part.choice_bits, part.erased_bits, weights)
            named = {"of": part.of, "phase": part.phase, "batch": part.batch}
            erased.append({**named, "steps": steps, "bytes_joules": floor.bytes_joules,
                           "measured_joules": row["joules_per_token"]})  # fmt: skip
    return sealed(
        {
            "version": VERSION,
            "source": WORD if run.counter is None else MEASURED,
            "counter": None if run.counter is None else run.counter.to_json(),
            "idle_watts": next((_idle_watts(run, part.of) for part in run.parts), None),
            "rows": rows,
            "comparison": compared(rows, run.counter is None),
            "erased_bits": erased,
            "assumptions": list(assumptions.values()),
            "refused": refused,
            "published": published(),
            "run": run.to_json(),
        }
    )


def compared(rows: list[dict[str, Any]], estimated: bool) -> list[dict[str, Any]]:
    """The checkpoint beside the original, phase by phase; two estimates are not ranked."""
    found = []
    others = {(row["phase"], row["batch"]): row for row in rows if row["of"] == "original"}
    for row in rows:
        other = others.get((row["phase"], row["batch"])) if row["of"] == "checkpoint" else None
        if other is None:
            continue
        named = {"phase": row["phase"], "batch": row["batch"], "joules_ratio": None, "verdict": "not ranked"}
        if estimated:
            moved = [each["bytes_per_token"] for each in (row, other)]
            differ = f"bytes moved differ by {100 * (moved[0] / moved[1] - 1):+.0f} %, " if all(moved) else ""
            found.append({**named, "reason": f"{differ}joules are modelled ({WORD})"})
            continue
        own, theirs = row["joules_per_token"], other["joules_per_token"]
        if own is None or theirs is None:
            found.append({**named, "reason": "one of the two was not measured"})
            continue
        apart = row["joules_per_token_ci95"][1] < other["joules_per_token_ci95"][0] or (
            other["joules_per_token_ci95"][1] < row["joules_per_token_ci95"][0]
        )
        verdict = "not distinguished" if not apart else "less" if own < theirs else "more"
        found.append({**named, "joules_ratio": own / theirs, "verdict": verdict, "reason": "95 % intervals"})
    return found


def _row(run: Run, part: Part, floor: Floor, made: Estimate | None) -> dict[str, Any]:
    seconds = sum(window.seconds for window in part.windows)
    tokens = sum(window.tokens for window in part.windows)
    rate = tokens / seconds
    good = [window for window in part.windows if window.joules is not None]
    faults = [window.fault for window in part.windows if window.fault]
    joules = interval = variation = None
    if len(good) >= LEAST_WINDOWS:
        each = [window.joules / window.tokens for window in good if window.joules is not None]
        joules = sum(window.joules or 0.0 for window in good) / sum(window.tokens for window in good)
        low, high = t_interval(each)
        middle = statistics.fmean(each)
        interval = [joules + low - middle, joules + high - middle]
        variation = statistics.stdev(each) / middle
    refused = None
    if run.counter is not None and joules is None:
        refused = f"{len(good)} of {len(part.windows)} windows could be read" + (f": {faults[0]}" if faults else "")
    below = floor.below(joules, 1 / rate)
    if below:
        joules = interval = variation = None
        refused = f"a fault of the measurement: {'; '.join(below)}"
    if run.counter is None and made is None:
        what = "the model's folder" if part.footprint is None else "the GPU's rated power"
        if part.of == "server" and run.machine.gpu is None:
            what = "the server's GPU (--device cuda:0)"
        refused = f"no counter, and an {WORD} needs {what}"
    if made is not None and floor.bytes_joules is not None and made.high < floor.bytes_joules:
        made, refused = None, f"the {WORD} lies below the floor of the bytes moved, so its assumptions do not hold here"
    watts = None if joules is None else joules * rate
    idle = _idle_watts(run, part.of)
    net = None if joules is None or idle is None else joules - idle / rate
    bits = None if part.phase == "prefill" else part.choice_bits
    return {
        "of": part.of,
        "source": WORD if run.counter is None else MEASURED,
        "phase": part.phase,
        "batch": part.batch,
        "prompt_tokens": part.prompt_tokens,
        "new_tokens": part.new_tokens,
        "arithmetic": part.arithmetic,
        "windows": len(part.windows),
        "seconds": seconds,
        "tokens": tokens,
        "tokens_per_second": rate,
        "watts": watts,
        "joules_per_token": joules,
        "joules_per_token_ci95": interval,
        "joules_per_token_net": net,
        "joules_per_token_interval": None if made is None else [made.low, made.high],
        "cv": variation,
        **convert.figures(joules, run.prices),
        "tokens_per_wh_interval": None if made is None else _turned(made, convert.tokens_per_wh),
        "kwh_per_million_tokens_interval": None
        if made is None
        else [convert.kwh_per_million(made.low), convert.kwh_per_million(made.high)],
        "bits_of_choice": bits,
        "bits_of_choice_per_joule": None if bits is None or joules is None else bits / joules,
        "bytes_per_token": None if part.footprint is None else _read(part) / _together(part),
        "floor": floor.to_json(watts, bits),
        "refused": refused,
    }


def _turned(made: Estimate, convert_one: Any) -> list[float]:
    return [convert_one(made.high), convert_one(made.low)]


def _read(part: Part) -> float:
    """Bytes that a step reads."""
    assert part.footprint is not None
    context = part.prompt_tokens if part.phase == "prefill" else part.prompt_tokens + part.new_tokens / 2
    return part.footprint.step_bytes(part.batch, context)


def _together(part: Part) -> int:
    """Tokens that share a step."""
    return part.batch * (part.prompt_tokens if part.phase == "prefill" else 1)


def _floor(run: Run, part: Part) -> Floor:
    if part.footprint is None:
        return Floor()
    return floor_of(
        part.footprint, phase=part.phase, batch=part.batch, prompt=part.prompt_tokens, new=part.new_tokens,
        choice_bits=part.choice_bits, erased_bits=part.erased_bits, gpu=run.machine.gpu, kelvin=run.kelvin,
    )  # fmt: skip


def _estimate(run: Run, part: Part) -> Estimate | None:
    if part.footprint is None or (part.of == "server" and run.machine.gpu is None):
        return None
    seconds = sum(window.seconds for window in part.windows) / sum(window.tokens for window in part.windows)
    return estimate(
        part.footprint, seconds=seconds, tokens=_together(part), bytes_read=_read(part), threads=run.machine.threads,
        gpu=run.machine.gpu, limit_watts=run.machine.limit_watts,
    )  # fmt: skip


def _idle_watts(run: Run, of: str) -> float | None:
    """Watts of the machine while nothing runs; None: not measured, or not asked for."""
    if run.idle not in ("measured", "ignore"):
        return float(run.idle)
    window = run.idle_windows.get(of)
    return None if window is None or window.joules is None else window.joules / window.seconds
