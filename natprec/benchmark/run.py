"""Asks both models, task by task, and compares their answers document by document."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import warnings
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from natprec.benchmark.result import BACKENDS, Evaluation, TaskResult
from natprec.benchmark.statistics import paired
from natprec.benchmark.tasks import Asked, tasks_named
from natprec.checkpoints.dense_reader import load_quantized
from natprec.errors import InputError, unknown
from natprec.evaluation.foreign import gguf_of, loaded
from natprec.measurement.subject import Subject
from natprec.models.processors import read_tokenizer
from natprec.utils.digests import checkpoint_digests
from natprec.utils.progress import Stages
from natprec.utils.provenance import Provenance
from natprec.utils.workers import Workers

METRICS = ("acc", "exact_match", "acc_norm", "f1")
"""Of several metrics of a document, the first of these is compared."""

TASKS = "lambada,arc_easy,piqa"


def require_lm_eval() -> None:
    """Say how to come by lm-eval before anything is loaded.

    Raises:
        InputError: it is not installed.
    """
    try:
        version("lm_eval")
    except ImportError as error:
        raise InputError("natprec eval asks lm-eval's tasks, and it is not installed; install natprec[eval]") from error


def refuse_backend(backend: str, folder: Path) -> None:
    """Stop before a model is loaded that no backend of this name runs.

    Raises:
        InputError: no such backend, or it runs no such checkpoint.
    """
    if backend not in BACKENDS:
        raise unknown("backend", backend, BACKENDS)
    if backend == "natprec" and gguf_of(folder) is not None:
        raise InputError(
            f"{str(folder)!r} is a GGUF file, which natprec's runtime does not run; use --backend transformers"
        )


def asked(names: str, folder: Path | None) -> list[Asked]:
    """The tasks, checked before a model is loaded; lm-eval's list is read only if a name is in no file."""
    with silent():
        return tasks_named(names, folder, lambda: _manager(True).all_tasks)


def evaluate(
    subject: Subject,
    folder: Path,
    tasks: Sequence[Asked],
    *,
    name: str,
    engine: str,
    backend: str = "transformers",
    limit: int | None = None,
    shots: int = 0,
    seed: int = 0,
    stages: Stages,
    provenance: Provenance | None = None,
) -> Evaluation:
    """Ask the original and the checkpoint.

    Args:
        folder: the checkpoint; `name`: as files that are passed on call it.
        engine: whose rule rounds activations, with the backend transformers.
        limit: documents of each task at most.
    Raises:
        InputError: an encoder, another tokenizer than the original's, or weights that stay on disk.
        ModelError: the checkpoint cannot be loaded.
    """
    if not subject.task.generates:
        raise InputError(
            f"{subject.name!r} is {subject.task.noun}, which gives no answers; natprec verify measures its distance"
        )
    if not subject.segmented.weights.whole:
        raise InputError(
            "natprec eval holds both models in memory; give --weights memory, or a machine with more of it"
        )
    refuse_other_tokenizer(subject, folder)
    with stages.stage("load checkpoint"):
        files = checkpoint_digests(folder)
        checkpoint = _checkpoint(folder, engine, backend, subject)
    results = compared(
        subject.model, checkpoint, subject.tokenizer, tasks, limit=limit, shots=shots, seed=seed, stages=stages,
        workers=subject.segmented.workers,
    )  # fmt: skip
    return Evaluation(
        subject.name, subject.digest, name, backend, limit, shots, version("lm_eval"), results, files, provenance
    )


def compared(
    original: Any,
    checkpoint: Any,
    tokenizer: Any,
    tasks: Sequence[Asked],
    *,
    limit: int | None = None,
    shots: int = 0,
    seed: int = 0,
    stages: Stages,
    workers: Workers | None = None,
) -> list[TaskResult]:
    """Ask two models that share a tokenizer; of a group of tasks, each has a result of its own.

    Args:
        workers: processes that call this with the same arguments and share the batches; text is written by each.
    """
    from natprec.benchmark.models import BothModels, Remembered

    results: list[TaskResult] = []
    with silent():
        manager = _manager(any(isinstance(task.task, str) for task in tasks))
        both = BothModels(original, checkpoint, tokenizer, stages, workers)
        remembered = Remembered(both, tokenizer)
        for task in tasks:
            both.begin(task.name)
            before = _samples(both, task, manager, limit, shots)
            after = _samples(remembered, task, manager, limit, shots)
            for own, rows in before.items():
                shown = task.name if len(before) == 1 else own
                results.append(_result(shown, rows, after[own], both.kl_mean if len(before) == 1 else None, seed))
    return results


def _checkpoint(folder: Path, engine: str, backend: str, subject: Subject) -> Any:
    if backend == "natprec":
        from natprec.runtime.load import load

        return load(folder, device=str(subject.model.device), trust_remote_code=subject.trusted).model
    planned = (folder / "plan.json").is_file()
    model: Any = load_quantized(folder, engine, subject.trusted) if planned else loaded(folder, subject)
    return model.to(subject.model.device)


def refuse_other_tokenizer(subject: Subject, folder: Path) -> None:
    """Stop where the checkpoint's tokenizer cuts text into other tokens.

    Raises:
        InputError: names a text that the two cut differently.
        ModelError: it has none that can be used.
    """
    own, theirs = subject.tokenizer, read_tokenizer(str(folder), gguf_of(folder), subject.trusted)
    for text in ("The cat, 3.14 and naïve façade", "  def f(x):\n\treturn x", "日本語 🙂"):
        if list(own(text)["input_ids"]) != list(theirs(text)["input_ids"]):
            raise InputError(
                f"the tokenizer of {str(folder)!r} cuts {text!r} into other tokens than that of {subject.name!r}; "
                "answers can only be compared with one tokenizer: give the model that the checkpoint was made from"
            )


def _manager(known: bool) -> Any:
    """lm-eval's reader of tasks; the thousands that come with it take seconds, and are read only if one is `known`."""
    from lm_eval.tasks import TaskManager

    return TaskManager(include_defaults=known)


def _samples(model: Any, task: Asked, manager: Any, limit: int | None, shots: int) -> dict[str, list[dict[str, Any]]]:
    """Task → its documents with metrics and responses, in order."""
    from lm_eval import evaluator

    try:
        # the commit is the current folder's, which it has no use for
        with replaced(evaluator, "get_git_commit_hash", lambda: None), _as_one_process():
            found = evaluator.simple_evaluate(
                model=model, tasks=[task.task], limit=limit, num_fewshot=shots, bootstrap_iters=0, log_samples=True,
                verbosity=None, task_manager=manager,
            )  # fmt: skip
    except (OSError, ConnectionError) as error:
        raise InputError(
            f"the documents of task {task.name!r} cannot be loaded ({error}); give --tasks-data FOLDER with its .jsonl"
        ) from error
    except ValueError as error:
        if "larger than population" not in str(error):
            raise
        raise InputError(
            f"task {task.name!r} has fewer than {shots} other documents to show as solved; lower --shots"
        ) from error
    assert found is not None
    return {name: sorted(rows, key=lambda row: row["doc_id"]) for name, rows in found["samples"].items()}


def _result(
    name: str, before: list[dict[str, Any]], after: list[dict[str, Any]], kl: float | None, seed: int
) -> TaskResult:
    metric = next((each for each in METRICS if each in before[0]), None)
    if metric is None:
        raise InputError(f"task {name!r} has none of the metrics {', '.join(METRICS)}; choose another task")
    base, quantized = ([float(row[metric]) for row in rows] for rows in (before, after))
    values = paired(base, quantized, seed)
    return TaskResult(
        name=name,
        n=values.n,
        metric=metric,
        base=values.base,
        quantized=values.quantized,
        difference=values.difference,
        ci95=values.ci95,
        p_mcnemar=values.p_mcnemar,
        flips_to_wrong=values.flips_to_wrong,
        flips_to_right=values.flips_to_right,
        answers_changed=sum(answer(a) != answer(b) for a, b in zip(before, after, strict=True)),
        detectable=values.detectable,
        kl_answers=kl,
        documents_digest=documents_digest(before),
    )


def documents_digest(rows: list[dict[str, Any]]) -> str:
    """16 hex digits of sha256 over lm-eval's own digests of the documents."""
    return hashlib.sha256("".join(row["doc_hash"] for row in rows).encode()).hexdigest()[:16]


def answer(row: dict[str, Any]) -> Any:
    """What a model answered: the likeliest choice, whether it would have written the continuation, or its text."""
    responses = row["filtered_resps"]
    if not responses or not isinstance(responses[0], tuple | list):
        return responses
    if len(responses) == 1:
        return bool(responses[0][1])
    return max(range(len(responses)), key=lambda place: responses[place][0])


@contextlib.contextmanager
def _as_one_process() -> Iterator[None]:
    """lm-eval answers at a launcher's first process alone: it is to do so at each, below which batches are shared."""
    rank = os.environ.pop("LOCAL_RANK", None)
    try:
        yield
    finally:
        if rank is not None:
            os.environ["LOCAL_RANK"] = rank


@contextlib.contextmanager
def silent() -> Iterator[None]:
    """Without the messages and bars of lm-eval and datasets; natprec's own progress stays."""
    from tqdm.std import tqdm

    logger, drawn = logging.getLogger("lm_eval"), tqdm.__init__
    before = logger.level

    def hidden(self: Any, *args: Any, **options: Any) -> None:
        drawn(self, *args, **{**options, "disable": True})

    logger.setLevel(logging.ERROR)
    try:
        with replaced(tqdm, "__init__", hidden), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(before)


@contextlib.contextmanager
def replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    """Another value of an attribute, for a while."""
    before = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)
