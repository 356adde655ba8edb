"""Tasks by name: lm-eval's own, a YAML or JSON-lines file, or a folder of JSON-lines files that needs no network.

A JSON-lines document has `context` and `continuation` (is the continuation the likeliest text?), or `query`, `choices`
and `gold` (which choice is likeliest?), as in the data of llm-foundry.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from natprec.errors import InputError, first_line, unknown
from natprec.utils.json_text import from_json

NAMES = {"lambada": "lambada_openai"}
"""Short names."""

_ACC = [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}]

FORMS: dict[tuple[str, ...], dict[str, Any]] = {
    ("context", "continuation"): {
        "output_type": "loglikelihood",
        "doc_to_text": "{{context}}",
        "doc_to_target": "{{continuation if continuation[0] == ' ' else ' ' + continuation}}",
        "target_delimiter": "",
    },
    ("query", "choices", "gold"): {
        "output_type": "multiple_choice",
        "doc_to_text": "{{query}}",
        "doc_to_choice": "choices",
        "doc_to_target": "gold",
    },
}
"""Fields of a document → how lm-eval asks it."""


@dataclass(frozen=True)
class Asked:
    """A task to run: `task` is lm-eval's name of one that it knows, or a configuration."""

    name: str
    task: str | dict[str, Any]


def tasks_named(names: str, folder: Path | None, known: Callable[[], Collection[str]] = tuple) -> list[Asked]:
    """The tasks of a list with commas.

    Args:
        folder: of JSON-lines files, which come before lm-eval's tasks of the same name.
        known: gives the names of lm-eval's tasks; called if a name is in no file.
    Raises:
        InputError: no such task, or a file that is none; suggests the nearest.
    """
    if folder is not None and not folder.is_dir():
        raise InputError(f"tasks-data {str(folder)!r} is no folder; name the folder of the .jsonl files")
    wanted = [name.strip() for name in names.split(",") if name.strip()]
    if not wanted:
        raise InputError("no tasks: give for example --tasks lambada,arc_easy,piqa")
    return [_asked(name, folder, known) for name in dict.fromkeys(wanted)]


def _asked(name: str, folder: Path | None, known: Callable[[], Collection[str]]) -> Asked:
    path = Path(name)
    if path.suffix in (".yaml", ".yml"):
        return Asked(path.stem, _yaml(path))
    if path.suffix == ".jsonl":
        return Asked(path.stem, from_lines(path))
    full = NAMES.get(name, name)
    if folder is not None:
        for each in (name, full):
            if (folder / f"{each}.jsonl").is_file():
                return Asked(name, from_lines(folder / f"{each}.jsonl"))
    if full not in (theirs := known()):
        here = [] if folder is None else [file.stem for file in sorted(folder.glob("*.jsonl"))]
        raise unknown("task", name, [*here, *NAMES, *theirs])
    return Asked(name, full)


def from_lines(path: Path) -> dict[str, Any]:
    """The configuration of a task whose documents are the lines of a file.

    Raises:
        InputError: no file, no JSON, or other fields; names the line.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"task {str(path)!r} cannot be read ({error}); give a .jsonl file") from error
    form: tuple[str, ...] | None = None
    for number, line in enumerate(lines, 1):
        form = _form(path, number, line, form)
    if form is None:
        raise InputError(f"task {str(path)!r} has no documents; give a .jsonl file with one on each line")
    data = {"dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(path.resolve())}}}
    return {
        "task": path.stem,
        **data,
        "test_split": "test",
        "fewshot_split": "test",
        **FORMS[form],
        "metric_list": _ACC,
    }


def _form(path: Path, number: int, line: str, form: tuple[str, ...] | None) -> tuple[str, ...]:
    try:
        document = from_json(line)
    except ValueError as error:
        raise InputError(
            f"task {str(path)!r}, line {number} is no JSON ({error}); write one document a line"
        ) from error
    fields = document.keys() if isinstance(document, dict) else set()
    found = next((each for each in FORMS if set(each) <= set(fields)), None)
    if found is None or (form is not None and found != form):
        wanted = " or ".join(", ".join(each) for each in ([form] if form else FORMS))
        raise InputError(f"task {str(path)!r}, line {number} has the fields {sorted(fields)}; needed are {wanted}")
    if found[0] == "query":
        choices, gold = document["choices"], document["gold"]
        if not isinstance(choices, list) or not isinstance(gold, int) or not 0 <= gold < len(choices):
            raise InputError(f"task {str(path)!r}, line {number}: gold {gold!r} is no number of one of its choices")
    return found


def _yaml(path: Path) -> dict[str, Any]:
    import yaml

    try:
        value = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise InputError(
            f"task {str(path)!r} cannot be read ({first_line(error)}); give a task of lm-eval, without Python functions"
        ) from error
    if not isinstance(value, dict) or "task" not in value:
        raise InputError(f"task {str(path)!r} is no task of lm-eval: it has no key 'task'; add one with its name")
    if "include" in value:
        raise InputError(
            f"task {str(path)!r} includes {str(value['include'])!r}, which is not read; write all in one file"
        )
    return value
