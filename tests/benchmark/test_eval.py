"""`natprec eval` on a tiny model: lm-eval's own accuracy, no flips against itself, flips against what is coarse."""

from __future__ import annotations

import json
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import Any

import pytest
import yaml

from natprec.reporting.sources import gather
from tests.conftest import made_up_words, tiny_model
from tests.run_command import natprec
from tests.utils.test_workers import finish, start


@pytest.fixture(scope="module")
def questions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("questions")
    words = made_up_words(4000, seed=7)
    lines = [
        {
            "query": " ".join(words[i : i + 9]),
            "choices": [words[i + 9], words[i + 10] + "x", "zq " + words[i]],
            "gold": 0,
        }
        for i in range(0, 1200, 12)
    ]
    (folder / "choices.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    texts = [{"context": " ".join(words[i : i + 9]), "continuation": " " + words[i + 9]} for i in range(1200, 1800, 12)]
    (folder / "words.jsonl").write_text("".join(json.dumps(line) + "\n" for line in texts))
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer: Any) -> Path:
    """A tiny llama whose predictions are far from uniform."""
    folder = tmp_path_factory.mktemp("models") / "sharp"
    tiny_model(initializer_range=0.3).save_pretrained(folder)
    tiny_tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def coarse(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("coarse") / "out"
    made = natprec(
        "quantize", "--model", model, "--bits", "2.6", "--out", out, "--tokens", "512", "--eval-tokens", "256",
        "--sequence-length", "64", "--rounding", "rtn",
    )  # fmt: skip
    assert made.code == 0, made.err
    return out


def run(*arguments: object) -> dict[str, Any]:
    done = natprec("eval", *arguments, "--json")
    assert done.code == 0, done.err
    found: dict[str, Any] = json.loads(done.out)
    return found


def test_accuracy_is_lm_evals_and_a_model_has_no_flips_against_itself(model: Path, questions: Path) -> None:
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM

    from natprec.benchmark.run import silent
    from natprec.benchmark.tasks import tasks_named

    found = run(model, "--model", model, "--tasks-data", questions, "--tasks", "choices,words")
    with silent():
        own = simple_evaluate(
            HFLM(pretrained=str(model), dtype="float32", device="cpu", batch_size=4),
            tasks=[each.task for each in tasks_named("choices,words", questions)], bootstrap_iters=0,
        )  # fmt: skip
    assert own is not None
    for task in found["tasks"]:
        assert task["base"] == pytest.approx(own["results"][task["name"]]["acc,none"], abs=1e-9)
        assert (task["flips_to_wrong"], task["flips_to_right"], task["answers_changed"]) == (0, 0, 0)
        assert task["kl_answers"] < 1e-9
        assert task["p_mcnemar"] == 1
    assert 0.1 < found["tasks"][0]["base"] < 0.9


def test_two_processes_share_the_questions(model: Path, questions: Path, coarse: Path) -> None:
    asked = (coarse, "--model", model, "--tasks-data", questions, "--tasks", "choices,words")
    alone = run(*asked)
    results = finish(start(2, "eval", *asked, "--json"))
    assert [result[0] for result in results] == [0, 0], results
    assert not results[1][1], "process 0 alone talks"
    for found, expected in zip(json.loads(results[0][1])["tasks"], alone["tasks"], strict=True):
        assert found.pop("kl_answers") == pytest.approx(expected.pop("kl_answers"), rel=1e-6)
        assert found == expected


@pytest.mark.parametrize("backend", ["transformers", "natprec"])
def test_a_coarse_checkpoint_changes_answers_with_either_backend(
    model: Path, questions: Path, coarse: Path, tmp_path: Path, backend: str
) -> None:
    out = tmp_path / "eval.json"
    found = run(
        coarse,
        "--model",
        model,
        "--tasks-data",
        questions,
        "--tasks",
        "choices",
        "--backend",
        backend,
        "--out",
        out,
    )
    (task,) = found["tasks"]
    assert task["n"] == 100
    assert task["answers_changed"] >= 3
    assert task["answers_changed"] >= task["flips_to_wrong"] + task["flips_to_right"]
    assert task["difference"] == pytest.approx((task["flips_to_right"] - task["flips_to_wrong"]) / task["n"])
    assert task["kl_answers"] > 1e-3
    assert str(tmp_path) not in out.read_text()
    assert gather(coarse, scores=out).scores is not None


def test_backends_agree(model: Path, questions: Path, coarse: Path) -> None:
    one, other = (
        run(coarse, "--model", model, "--tasks-data", questions, "--tasks", "choices", "--backend", each)["tasks"][0]
        for each in ("transformers", "natprec")
    )
    assert abs(one["quantized"] - other["quantized"]) <= 0.01
    assert one["kl_answers"] == pytest.approx(other["kl_answers"], rel=1e-3)


def test_limit_is_said_in_the_table(
    model: Path, questions: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """And lm-eval's git has nothing to say of a folder that is no repository."""
    monkeypatch.chdir(tmp_path)
    done = natprec("eval", model, "--model", model, "--tasks-data", questions, "--tasks", "words", "--limit", 7)
    assert done.code == 0, done.err
    assert "at most 7 documents" in done.out
    assert "no difference seen; 7 documents show differences from" in done.out
    assert "git" not in capfd.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--tasks", "choises"), "did you mean 'choices'"),
        (("--tasks", "words", "--backend", "natpreck"), "did you mean 'natprec'"),
        (("--tasks", "absent.jsonl"), "cannot be read"),
    ],
)
def test_bad_requests_are_refused(model: Path, questions: Path, arguments: tuple[str, ...], message: str) -> None:
    done = natprec("eval", model, "--model", model, "--tasks-data", questions, *arguments)
    assert (done.code, message in done.err) == (2, True), done.err


def test_an_encoder_and_another_tokenizer_are_refused(
    model: Path, encoder_folder: Path, questions: Path, tmp_path: Path
) -> None:
    done = natprec("eval", encoder_folder, "--model", encoder_folder, "--tasks-data", questions, "--tasks", "words")
    assert (done.code, "is an encoder" in done.err) == (2, True), done.err
    done = natprec("eval", encoder_folder, "--model", model, "--tasks-data", questions, "--tasks", "words")
    assert (done.code, "tokens" in done.err) == (2, True), done.err


def test_without_lm_eval_its_extra_is_named(model: Path, questions: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def version(name: str) -> str:
        raise PackageNotFoundError(name)

    monkeypatch.setattr("natprec.benchmark.run.version", version)
    done = natprec("eval", model, "--model", model, "--tasks-data", questions, "--tasks", "words")
    assert (done.code, "natprec[eval]" in done.reason) == (2, True), done.err


def test_a_yaml_asks_what_lm_eval_asks(model: Path, questions: Path, tmp_path: Path) -> None:
    """The same documents as a file of lines and as a task of lm-eval: the same result, but for the name."""
    task = {"task": "mine", "dataset_path": "json", "test_split": "test", "output_type": "multiple_choice",
            "dataset_kwargs": {"data_files": {"test": str(questions / "choices.jsonl")}}, "doc_to_text": "{{query}}",
            "doc_to_choice": "choices", "doc_to_target": "gold", "metric_list": [{"metric": "acc"}]}  # fmt: skip
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(task))
    asked = ("--tasks", f"{tmp_path / 'mine.yaml'},{questions / 'choices.jsonl'}", "--limit", 20)
    found = run(model, "--model", model, *asked)
    one, other = found["tasks"]
    assert (one.pop("name"), other.pop("name")) == ("mine", "choices")
    assert one == other
    assert one["n"] == 20
    assert found["provenance"]["command"].endswith("--tasks mine.yaml,choices.jsonl --limit 20")
