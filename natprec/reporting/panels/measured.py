"""What other commands have measured: energy, answers, boundaries. Each is there where its file is."""

from __future__ import annotations

from typing import Any

from natprec.benchmark.result import TaskResult, how_asked
from natprec.reporting.elements import Content, Markup, element, joined, missing, table


def energy_panel(data: dict[str, Any]) -> Markup:
    """Joules of a token by phase and batch; the word ESTIMATE in every cell of joules that no counter measured."""
    found = data["energy"]
    if found is None:
        return missing("Energy", "natprec energy DIR --out energy.json")
    estimate = found.get("source") != "measured"
    rows = [
        (
            f"{row['phase']}, batch {row['batch']}",
            _number(row.get("tokens_per_second")),
            _joules(row.get("joules_per_token"), estimate),
            _joules(row.get("tokens_per_wh"), estimate),
            _number((row.get("floor") or {}).get("landauer_joules")),
            _number((row.get("floor") or {}).get("bytes_joules")),
        )
        for row in found["rows"]
    ]
    headers = (
        "phase",
        "tokens per second",
        "joules per token",
        "tokens per Wh",
        "Landauer's floor, J",
        "floor of bytes, J",
    )
    counter = f"Source: {found.get('source')}; counter: {_counter(found.get('counter'))}."
    return joined([table("Energy of a token", headers, rows, (1, 2, 3, 4, 5)), element("p", counter, kind="hint")])


def _counter(value: Any) -> str:
    return str(value.get("kind", "none")) if isinstance(value, dict) else "none" if value is None else str(value)


def _joules(value: Any, estimate: bool) -> Content:
    if not estimate:
        return _number(value)
    return element("span", f"ESTIMATE {_number(value)}", kind="estimate")


def _number(value: Any) -> str:
    if isinstance(value, list):
        return " to ".join(_number(each) for each in value)
    if isinstance(value, dict):
        return f"{_number(value.get('low'))} to {_number(value.get('high'))}"
    return f"{value:.4g}" if isinstance(value, int | float) else "–"


def scores_panel(data: dict[str, Any]) -> Markup:
    """Answers of original and checkpoint on the same documents: what an average hides are the answers that flip."""
    found = data["scores"]
    if found is None:
        return missing("Answers", "natprec eval DIR --model MODEL --out eval.json")
    tasks = [TaskResult(**task) for task in found["tasks"]]
    rows = [
        (
            task.name,
            task.n,
            f"{task.base:.3f}",
            f"{task.quantized:.3f}",
            f"{task.difference:+.3f} ({task.ci95[0]:+.3f} to {task.ci95[1]:+.3f})",
            _number(task.flips_to_wrong),
            _number(task.flips_to_right),
            task.answers_changed,
            _number(task.p_mcnemar),
        )
        for task in tasks
    ]
    headers = ("task", "documents", "original", "checkpoint", "difference, 95 %", "to wrong", "to right", "changed",
               "McNemar p")  # fmt: skip
    asked = f"lm-eval {found['lm_eval_version']}, {how_asked(found['limit'], found['shots'])}"
    notes = [
        f"{asked}; {found['backend']} ran the checkpoint.",
        *(f"{task.unseen}." for task in tasks if task.unseen is not None),
    ]
    hints = [element("p", note, kind="hint") for note in notes]
    return joined([table("Answers on the same documents", headers, rows, tuple(range(1, 9))), *hints])


def boundaries_panel(data: dict[str, Any], picture: str | None) -> Markup:
    """The graph that `natprec inspect` drew, and what its boundaries add up to."""
    found = data["inspection"]
    if found is None:
        return missing("Boundaries", "natprec inspect --plan plan.json --out DIR")
    sums = found["totals"]
    text = (
        f"{sums['boundaries']} boundaries, {sums['free']} free, {sums['fused']} in an epilogue; "
        f"{sums['erased_bits']:.4g} bits erased, at least {sums['landauer_joules']:.3g} J at {found['kelvin']:g} K."
    )
    drawn = (
        None
        if picture is None
        else element("div", Markup(picture), kind="wide", tabindex="0", role="region", aria_label="Graph")
    )
    return joined([element("p", text), drawn])
