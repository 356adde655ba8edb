"""An evaluation as a table of 80 columns, and what may not be read from it."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.table import Table

from natprec.benchmark.result import Evaluation


def table(found: Evaluation) -> RenderableType:
    """A row for each task; below it, for each task without a difference, how small a one could have been seen."""
    rows = Table(box=None, pad_edge=False, header_style="bold")
    for number, header in enumerate(("task", "n", "base", "quantized", "difference, 95 %", "flips", "KL answers")):
        rows.add_column(header, justify="left" if number == 0 else "right", no_wrap=True)
    for task in found.tasks:
        low, high = task.ci95
        flips = "-" if task.flips_to_wrong is None else f"{task.flips_to_wrong} / {task.flips_to_right}"
        rows.add_row(
            task.name, str(task.n), f"{task.base:.3f}", f"{task.quantized:.3f}",
            f"{task.difference:+.3f} ({low:+.3f} to {high:+.3f})", flips,
            "-" if task.kl_answers is None else f"{task.kl_answers:.4f}",
        )  # fmt: skip
    notes = [task.unseen for task in found.tasks if task.unseen is not None]
    return Group(rows, "flips: answers that became wrong / right", found.asked, *notes)
