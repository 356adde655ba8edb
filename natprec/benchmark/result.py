"""eval.json: what was asked of both models, and how their answers differ."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any

from natprec.utils.atomic_files import write_json
from natprec.utils.own_files import EVALUATION, read_json, sealed
from natprec.utils.provenance import Provenance
from natprec.utils.schema import Among, Count, From0, Place, Positive, Within, read

VERSION = 2
"""2 since it says which files of the checkpoint were asked."""

BACKENDS = ("transformers", "natprec")

CLOSE = 1e-9
"""Figures that follow from others agree to so much."""


@dataclass(frozen=True)
class TaskResult:
    """One task.

    Attributes:
        metric: that `base` and `quantized` are the means of; with `difference`, its 95 % interval, and flips: see
            `natprec.benchmark.statistics.Paired`.
        answers_changed: documents whose answer is another, right or wrong.
        kl_answers: KL(original ‖ checkpoint) on the answers' tokens, nats per token; None where none was scored.
        detectable: the smallest difference that so many documents can show.
        documents_digest: of the documents that were asked, in order; None in older files, which do not say.
    """

    name: str
    n: Positive
    metric: str
    base: From0
    quantized: From0
    difference: float
    ci95: tuple[float, float]
    p_mcnemar: Annotated[float, Within(0, 1)] | None
    flips_to_wrong: Count | None
    flips_to_right: Count | None
    answers_changed: Count
    detectable: From0
    kl_answers: From0 | None
    documents_digest: str | None = None

    @property
    def flips(self) -> tuple[int, int] | None:
        """To wrong and to right; None where scores are no right and wrong."""
        if self.flips_to_wrong is None or self.flips_to_right is None:
            return None
        return self.flips_to_wrong, self.flips_to_right

    @property
    def unseen(self) -> str | None:
        """What a difference that is not seen means; None where one is seen."""
        if not self.ci95[0] <= 0 <= self.ci95[1]:
            return None
        return f"{self.name}: no difference seen; {self.n} documents show differences from ±{self.detectable:.3f} on"


@dataclass(frozen=True)
class Evaluation:
    """All tasks, and what they were run on and with.

    Attributes:
        limit: documents of each task at most; None: all.
        backend: what ran the checkpoint: 'transformers' or 'natprec'.
        files: the checkpoint's files that were asked, name → sha256.
    """

    model: str
    model_digest: str
    checkpoint: str
    backend: Annotated[str, Among(BACKENDS)]
    limit: Positive | None
    shots: Count
    lm_eval_version: str
    tasks: list[TaskResult]
    files: dict[str, str] = field(default_factory=dict)
    provenance: Provenance | None = field(default=None, compare=False)

    @property
    def asked(self) -> str:
        """How many documents, and with how many solved examples before each."""
        return how_asked(self.limit, self.shots)

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {"version": VERSION, **asdict(self)}

    def save(self, path: Path) -> None:
        """Write eval.json, with its checksum."""
        write_json(path, sealed(self.to_json()))

    @classmethod
    def load(cls, path: Path) -> Evaluation:
        """Read eval.json.

        Raises:
            InputError: missing, changed, none, of another version, or one that contradicts itself; names the field.
        """
        value = read_json(path, EVALUATION, (1, VERSION))
        value.pop("version")
        place = EVALUATION.place(path)
        made: Evaluation = read(cls, value, place)
        if not made.tasks:
            raise place.within("tasks").wrong("is empty")
        for number, task in enumerate(made.tasks):
            _refuse_contradiction(task, place.within("tasks").at(number))
        return made


def how_asked(limit: int | None, shots: int) -> str:
    """As pages and tables say it.

    >>> how_asked(200, 0)
    'at most 200 documents of each task, 0 shots'
    """
    documents = "all documents" if limit is None else f"at most {limit} documents of each task"
    return f"{documents}, {shots} shots"


def _refuse_contradiction(task: TaskResult, place: Place) -> None:
    """Stop where figures of a task that follow from each other do not."""
    if not math.isclose(task.difference, task.quantized - task.base, abs_tol=CLOSE):
        raise place.within("difference").wrong(f"is {task.difference:g}, and {task.quantized:g} less {task.base:g}")
    if task.ci95[0] > task.ci95[1]:
        raise place.within("ci95").wrong(f"goes from {task.ci95[0]:g} to {task.ci95[1]:g}")
    flips = task.flips
    if (flips is None) != (task.p_mcnemar is None) or (task.flips_to_wrong is None) != (task.flips_to_right is None):
        raise place.wrong("has only some of flips_to_wrong, flips_to_right and p_mcnemar")
    if flips is not None and not math.isclose(task.difference * task.n, flips[1] - flips[0], abs_tol=CLOSE * task.n):
        raise place.wrong(f"has {flips[0]} flips to wrong and {flips[1]} to right of {task.n}, and a difference of "
                          f"{task.difference:g}")  # fmt: skip
    if not sum(flips or ()) <= task.n >= task.answers_changed:
        raise place.wrong(f"has more flips or changed answers than its {task.n} documents")
