"""What a card says of answers: both models on the same documents, from eval.json."""

from __future__ import annotations

from natprec.publishing.contents import Contents
from natprec.publishing.markdown import block, code, section, table, text


def scores(contents: Contents) -> str:
    """A row for each task; below, how small a difference could have been seen where none was. Empty: nobody asked."""
    found = contents.evaluation
    if found is None:
        return ""
    rows = [
        (
            code(task.name), str(task.n), text(task.metric), f"{task.base:.4f}", f"{task.quantized:.4f}",
            f"{task.difference:+.4f}", f"{task.ci95[0]:+.4f} to {task.ci95[1]:+.4f}",
            "" if task.flips is None else f"{task.flips[0]} / {task.flips[1]}", str(task.answers_changed),
        )
        for task in found.tasks
    ]  # fmt: skip
    head = ("task", "documents", "metric", "original", "this checkpoint", "difference", "95 % interval",
            "flips, to wrong / to right", "answers changed")  # fmt: skip
    unseen = [f"- {text(task.unseen)}." for task in found.tasks if task.unseen is not None]
    made = found.provenance
    return section(
        "Answers",
        f"Both models on the same documents by lm-eval {text(found.lm_eval_version)} ({found.asked}); "
        f"{text(found.backend)} ran this checkpoint.",
        table(head, rows),
        "\n".join(unseen),
        block(made.command) if made is not None else "",
    )
