"""Scores on cards and pages are those of eval.json, of this model and these bytes."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

from natprec.benchmark.result import Evaluation, TaskResult
from natprec.benchmark.statistics import paired
from natprec.errors import OutputError
from natprec.publishing.ladder import rendered
from natprec.reporting.page import page
from natprec.reporting.sources import gather
from natprec.solver import Plan
from natprec.utils.digests import checkpoint_digests
from natprec.utils.marks import refuse_foreign
from tests.hub import Hub
from tests.publishing.conftest import verification
from tests.publishing.test_push import NAME, pushed
from tests.run_command import natprec

FLIPS = {"lambada": (9, 2), "piqa": (0, 0)}


def task(name: str, wrong: int, right: int) -> TaskResult:
    """40 documents, 20 of them right at first, of which `wrong` become wrong, and `right` others right."""
    base = [1] * 20 + [0] * 20
    after = [0] * wrong + [1] * (20 - wrong + right) + [0] * (20 - right)
    found = paired(base, after)
    assert found.p_mcnemar is not None
    return TaskResult(
        name, found.n, "acc", found.base, found.quantized, found.difference, found.ci95, found.p_mcnemar, wrong, right,
        wrong + right + 1, found.detectable, 0.012345, "ab" * 8,
    )  # fmt: skip


@pytest.fixture
def asked(checkpoint: Path) -> Path:
    """A checkpoint beside whose files an eval.json lies."""
    tasks = [task(name, *flips) for name, flips in FLIPS.items()]
    files = checkpoint_digests(checkpoint)
    digest = Plan.load(checkpoint / "plan.json").model_digest
    Evaluation("alice/tiny", digest, "tiny-natprec", "transformers", 40, 0, "0.4.13", tasks, files).save(
        checkpoint / "eval.json"
    )
    return checkpoint


def changed(folder: Path, **changes: object) -> None:
    replace(Evaluation.load(folder / "eval.json"), **changes).save(folder / "eval.json")  # type: ignore[arg-type]


def test_every_number_of_the_card_is_that_of_the_file(asked: Path) -> None:
    found = json.loads((asked / "eval.json").read_text())
    part = rendered(asked).partition("## Answers\n")[2].partition("\n## ")[0]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in part.splitlines() if line[:3] == "| `"]
    assert len(rows) == len(found["tasks"])
    for row, each in zip(rows, found["tasks"], strict=True):
        numbers = [float(value) for value in re.findall(r"[+-]?\d+(?:\.\d+)?", " ".join(row[1:]))]
        expected = [
            each["n"], each["base"], each["quantized"], each["difference"], *each["ci95"], each["flips_to_wrong"],
            each["flips_to_right"], each["answers_changed"],
        ]  # fmt: skip
        assert row[0] == f"`{each['name']}`"
        assert numbers == pytest.approx(expected, abs=5e-5)
        shown = f"{each['name']}: no difference seen; 40 documents show differences from ±{each['detectable']:.3f} on"
        assert (shown in part) == (each["ci95"][0] <= 0 <= each["ci95"][1])
    assert found["lm_eval_version"] in part
    assert sum("no difference seen" in line for line in part.splitlines()) == 1, "of the one that did not change"


def test_the_model_index_repeats_them_to_the_last_digit(asked: Path) -> None:
    from huggingface_hub import ModelCard

    assert natprec("card", asked).code == 0
    card = ModelCard.load(asked / "README.md").data
    values = {each.dataset_name: each.metric_value for each in card.eval_results if each.metric_type == "acc"}
    assert values == {
        each["name"]: each["quantized"] for each in json.loads((asked / "eval.json").read_text())["tasks"]
    }
    assert {each.metric_type for each in card.eval_results} == {"kl", "perplexity", "top1_agreement", "acc"}


def test_an_evaluation_of_another_model_is_refused(asked: Path) -> None:
    """By card and report, with both digests."""
    own = Plan.load(asked / "plan.json").model_digest
    changed(asked, model_digest="f" * 16)
    for command in (("card", asked), ("report", asked, "--out", asked.parent / "r.html")):
        result = natprec(*command)
        assert result.code == 2
        assert "f" * 16 in result.reason
        assert own in result.reason


def test_an_evaluation_of_another_checkpoint_is_refused(asked: Path) -> None:
    files = verification(asked)["files"]
    changed(asked, files={**files, "model.safetensors": "0" * 64})
    for command in (("card", asked), ("report", asked, "--out", asked.parent / "r.html")):
        result = natprec(*command)
        assert (result.code, "'model.safetensors'" in result.reason) == (2, True), result.err
    assert files["model.safetensors"] in natprec("card", asked).reason
    (asked / "verification.json").unlink()
    result = natprec("push", asked, NAME, "--allow-unverified")
    assert (result.code, "natprec eval again" in result.reason) == (2, True), result.err


def test_added_files_do_not_keep_a_folder_from_being_replaced(asked: Path) -> None:
    """Unless they are somebody else's."""
    assert natprec("report", asked, "--out", asked / "report.html").code == 0
    refuse_foreign(asked)
    for name in ("report.html", "eval.json"):
        content = (asked / name).read_bytes()
        (asked / name).write_text("mine")
        with pytest.raises(OutputError, match=name):
            refuse_foreign(asked)
        (asked / name).write_bytes(content)


@pytest.mark.parametrize("command", ["card", "report"])
def test_an_unknown_version_is_refused(asked: Path, command: str) -> None:
    value = json.loads((asked / "eval.json").read_text())
    (asked / "eval.json").write_text(json.dumps({**value, "version": 99}))
    result = natprec(command, asked, "--out", asked.parent / "out")
    assert (result.code, "has version 99" in result.reason) == (2, True), result.err


def test_markup_in_a_task_is_text(asked: Path) -> None:
    found = Evaluation.load(asked / "eval.json")
    name = "<b>x</b>|`y`"
    changed(asked, tasks=[replace(each, name=name, metric="<i>acc|") for each in found.tasks])
    part = rendered(asked).partition("## Answers\n")[2].partition("\n## ")[0]
    code = re.sub(r"(`+)(?!`).*?(?<!`)\1(?!`)", "", part)
    assert not re.search(r"(?<!\\)[<>]", code)
    assert all(len(re.findall(r"(?<!\\)\|", line)) == 10 for line in part.splitlines() if line.startswith("|"))
    assert "<b>x" not in page(gather(asked)).partition("<script")[0]


def test_a_push_takes_scores_and_the_page_along(hub: Hub, asked: Path) -> None:
    """The page is there whole, in the same commit, and a dry run lists it; without --report it is not, nor named."""
    said = pushed(asked, "--report", "--dry-run")
    assert {"eval.json", "report.html"} <= set(said["files"]["main"])
    assert NAME not in hub.repositories
    first = pushed(asked, "--report")
    repository = hub.repositories[NAME]
    files = repository.commits[first["commit"]].files
    assert len(repository.commits) == 2
    assert hub.content(files["report.html"]) == page(gather(asked)).encode()
    assert hub.content(files["eval.json"]) == (asked / "eval.json").read_bytes()
    assert "(report.html)" in hub.content(files["README.md"]).decode()
    assert pushed(asked, "--report")["new"] is False, "equal inputs give equal bytes"
    private = pushed(asked, "--report", "--no-measurement")
    shown = hub.content(repository.commits[private["commit"]].files["report.html"]).decode()
    assert '"stairs":null' in shown, "what others solve from stays out of the page, too"
    last = pushed(asked)
    files = repository.commits[last["commit"]].files
    assert "report.html" not in files
    assert "(report.html)" not in hub.content(files["README.md"]).decode()


def test_a_card_with_a_page_is_rendered_again_from_what_was_pulled(hub: Hub, asked: Path) -> None:
    from huggingface_hub import snapshot_download

    pushed(asked, "--report")
    folder = Path(snapshot_download(NAME))
    out = asked.parent / "again.md"
    assert natprec("card", folder, "--out", out).code == 0
    assert out.read_bytes() == (folder / "README.md").read_bytes()
