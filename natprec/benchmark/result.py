"""eval.json: what was asked of both models, and how their answers differ."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any

from natprec.utils.atomic_files import write_json
from natprec.utils.own_files import sealed
from natprec.utils.provenance import Provenance
from natprec.utils.schema import Count, From0, Positive, Within

VERSION = 1


@dataclass(frozen=True)
class TaskResult:
    """One task.

    Attributes:
        metric: that `base` and `quantized` are the means of; with `difference`, its 95 % interval, and flips: see
            `natprec.benchmark.statistics.Paired`.
        answers_changed: documents whose answer is another, right or wrong.
        kl_answers: KL(original ‖ checkpoint) on the answers' tokens, nats per token; None where none was scored.
        detectable: the smallest difference that so many documents can show.
    """

    name: str
    n: Positive
    metric: str
    base: float
    quantized: float
    difference: float
    ci95: tuple[float, float]
    p_mcnemar: Annotated[float, Within(0, 1)] | None
    flips_to_wrong: Count | None
    flips_to_right: Count | None
    answers_changed: Count
    detectable: From0
    kl_answers: From0 | None


@dataclass(frozen=True)
class Evaluation:
    """All tasks, and what they were run on and with.

    Attributes:
        limit: documents of each task at most; None: all.
        backend: what ran the checkpoint: 'transformers' or 'natprec'.
    """

    model: str
    model_digest: str
    checkpoint: str
    backend: str
    limit: Positive | None
    shots: Count
    lm_eval_version: str
    tasks: list[TaskResult]
    provenance: Provenance | None = field(default=None, compare=False)

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {"version": VERSION, **asdict(self)}

    def save(self, path: Path) -> None:
        """Write eval.json, with its checksum."""
        write_json(path, sealed(self.to_json()))
