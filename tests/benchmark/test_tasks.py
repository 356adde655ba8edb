"""Tasks: by name, from a file, from a folder; what is none is refused before a model is loaded."""

from __future__ import annotations

from pathlib import Path

import pytest

from natprec.benchmark.tasks import tasks_named
from natprec.errors import InputError

CHOICE = '{"query": "Why?", "choices": ["a", "b"], "gold": 1}\n'


def test_a_file_in_the_folder_comes_before_the_task_of_that_name(tmp_path: Path) -> None:
    (tmp_path / "piqa.jsonl").write_text(CHOICE)
    (tmp_path / "lambada_openai.jsonl").write_text('{"context": "a b", "continuation": " c"}\n')
    piqa, lambada, own = tasks_named("piqa, lambada,arc_easy", tmp_path, lambda: ["piqa", "arc_easy"])
    assert piqa.task["output_type"] == "multiple_choice"  # type: ignore[index]
    assert (lambada.name, lambada.task["output_type"]) == ("lambada", "loglikelihood")  # type: ignore[index]
    assert own.task == "arc_easy"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "no documents"),
        ("{", "line 1 is no JSON"),
        ('{"question": "Why?"}\n', r"\['question'\]; needed are context, continuation or query, choices, gold"),
        (CHOICE + '{"context": "a", "continuation": "b"}\n', "line 2 has the fields"),
        ('{"query": "Why?", "choices": ["a", "b"], "gold": 2}\n', "gold 2 is no number"),
    ],
)
def test_a_file_without_questions_is_refused(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "mine.jsonl").write_text(content)
    with pytest.raises(InputError, match=message):
        tasks_named(str(tmp_path / "mine.jsonl"), None)


def test_an_unknown_task_suggests_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="did you mean 'arc_easy'"):
        tasks_named("arc_eazy", tmp_path, lambda: ["arc_easy", "piqa"])
    with pytest.raises(InputError, match="no tasks"):
        tasks_named(" , ", tmp_path, lambda: ["arc_easy"])
    with pytest.raises(InputError, match="is no folder"):
        tasks_named("piqa", tmp_path / "absent", lambda: ["piqa"])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("task: x\nprocess_docs: !function utils.docs\n", "cannot be read .*without Python functions"),
        ("a: [1\n", "cannot be read"),
        ("- task\n", "no key 'task'"),
        ("dataset_path: json\n", "no key 'task'"),
        ("task: x\ninclude: base.yaml\n", "includes 'base.yaml', which is not read"),
    ],
)
def test_a_yaml_that_is_no_task_is_refused_in_one_line(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "mine.yaml").write_text(content)
    with pytest.raises(InputError, match=message) as caught:
        tasks_named(str(tmp_path / "mine.yaml"), None)
    assert "\n" not in str(caught.value)
