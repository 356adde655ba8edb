"""A card says what the files beside it say, to the last digit, and nothing that they do not."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from natprec.errors import OutputError
from natprec.evaluation.verification import Verification
from natprec.publishing.card import render
from natprec.publishing.contents import read_contents
from natprec.publishing.ladder import rendered
from natprec.solver import Plan
from natprec.utils.human import human_bytes
from natprec.utils.marks import refuse_foreign
from tests.publishing.conftest import verification
from tests.run_command import natprec


def front_of(card: str) -> dict[str, Any]:
    found = re.match(r"---\n(.*?)\n---\n", card, re.DOTALL)
    assert found is not None
    value: dict[str, Any] = yaml.safe_load(found[1])
    return value


def changed(folder: Path, **changes: Any) -> None:
    """verification.json as another run would have written it."""
    replace(Verification.load(folder / "verification.json"), **changes).save(folder / "verification.json")


def test_front_matter_and_model_index(checkpoint: Path) -> None:
    """huggingface_hub reads back the numbers of verification.json."""
    from huggingface_hub import ModelCard

    assert natprec("card", checkpoint).code == 0
    found = verification(checkpoint)
    card = ModelCard.load(checkpoint / "README.md").data
    assert card.base_model == "alice/tiny"
    assert front_of((checkpoint / "README.md").read_text())["base_model_relation"] == "quantized"
    assert (card.library_name, card.pipeline_tag) == ("transformers", "text-generation")
    assert {"natprec", "compressed-tensors", "quantized"} <= set(card.tags)
    values = {each.metric_type: each.metric_value for each in card.eval_results}
    assert values == {
        "kl": found["kl_mean"], "perplexity": found["perplexity_quantized"], "top1_agreement": found["top1_agreement"],
    }  # fmt: skip
    assert {each.dataset_revision for each in card.eval_results} == {found["texts"][0]["digest"]}


def test_numbers_come_from_the_files(checkpoint: Path) -> None:
    plan, found = Plan.load(checkpoint / "plan.json"), verification(checkpoint)
    card = rendered(checkpoint)
    assert plan.provenance is not None
    for said in (
        f"{found['kl_mean']:.4g}", f"{found['kl_p99']:.4g}", f"{found['perplexity_quantized']:.3f}",
        f"{found['top1_agreement']:.2%}", human_bytes(found["stored_bytes"]), f"{plan.bits_per_weight:.3f}",
        found["data_digest"], str(plan.provenance.model_revision), plan.provenance.command, "LICENSE",
    ):  # fmt: skip
        assert said in card
    changed(checkpoint, kl_mean=0.123456, texts=[])
    assert "0.1235" not in card
    assert "0.1235" in rendered(checkpoint)


@pytest.mark.parametrize(
    ("mean", "high", "said"), [(0.4, 0.45, "**PASS**"), (0.4, 0.6, "**PASS WITHIN NOISE**"), (0.7, 0.8, "**FAIL**")]
)
def test_the_verdict_stands_at_the_top(checkpoint: Path, mean: float, high: float, said: str) -> None:
    verdict = {"**PASS**": "pass", "**FAIL**": "fail"}.get(said, "pass-within-noise")
    changed(
        checkpoint, kl_mean=mean, kl_ci95=(0.1, high), verdict=verdict, passed=verdict != "fail", texts=[],
    )  # fmt: skip
    lines = [line for line in rendered(checkpoint).partition("\n# ")[2].splitlines() if line]
    assert lines[1].startswith("[alice/tiny](")
    assert lines[2].startswith(said)
    assert ("FAILS its promise" in lines[0]) == (verdict == "fail")


def test_a_looser_tolerance_of_verify_is_not_the_promise(checkpoint: Path) -> None:
    """`natprec verify --eps 9` passes; the card judges by what the plan promised."""
    changed(checkpoint, eps=9.0, kl_mean=0.7, kl_ci95=(0.6, 0.8), verdict="pass", passed=True, texts=[])
    assert "**FAIL**" in rendered(checkpoint)


def test_a_size_has_no_promise(checkpoint: Path) -> None:
    contents = read_contents(checkpoint)
    assert contents.verification is not None
    sized = replace(
        contents, plan=replace(contents.plan, eps=None),
        verification=replace(contents.verification, eps=None, verdict=None, passed=None),
    )  # fmt: skip
    assert "No tolerance was asked for, only a size. Measured:" in render(sized)
    assert "not a promise" in render(sized)


def test_a_model_from_a_file_has_no_base_model(checkpoint: Path) -> None:
    contents = read_contents(checkpoint)
    assert contents.plan.provenance is not None
    plan = replace(contents.plan, model="tiny.gguf",
                   provenance=replace(contents.plan.provenance, model="tiny.gguf", model_revision=None))  # fmt: skip
    card = render(replace(contents, plan=plan))
    assert not front_of(card).keys() & {"base_model", "base_model_relation", "license"}
    assert f"\nThe float values of `tiny.gguf` (weights with digest `{plan.model_digest}`), quantized" in card


def test_markup_in_names_is_text(checkpoint: Path) -> None:
    name = 'x<script>alert(1)</script>|[a](b)`\n# no "title": y'
    found = Verification.load(checkpoint / "verification.json")
    changed(checkpoint, data=name, texts=[replace(each, name=name) for each in found.texts])
    card = rendered(checkpoint)
    body = card.partition("\n---\n")[2]
    code = re.sub(r"(`+)(?!`).*?(?<!`)\1(?!`)", "", re.sub(r"(?ms)^(`{3,})\w*\n.*?^\1$", "", body))
    assert "<script>" not in code, "outside of code it is escaped"
    assert "\n# no" not in code
    assert front_of(card)["model-index"][0]["results"][0]["dataset"]["name"] == name


def test_files_of_different_models(checkpoint: Path) -> None:
    found = Verification.load(checkpoint / "verification.json")
    assert found.provenance is not None
    changed(checkpoint, provenance=replace(found.provenance, model_digest="f" * 16))
    result = natprec("card", checkpoint)
    assert result.code == 2
    assert "f" * 16 in result.reason
    assert found.provenance.model_digest in result.reason


@pytest.mark.parametrize("file", ["plan.json", "verification.json"])
def test_an_unknown_version(checkpoint: Path, file: str) -> None:
    value = json.loads((checkpoint / file).read_text())
    value["version"] = 99
    (checkpoint / file).write_text(json.dumps(value))
    result = natprec("card", checkpoint)
    assert result.code == 2
    assert "has version 99" in result.reason


def test_a_card_written_by_hand_stays(checkpoint: Path) -> None:
    (checkpoint / "README.md").write_text("mine")
    result = natprec("card", checkpoint)
    assert (result.code, (checkpoint / "README.md").read_text()) == (2, "mine")
    assert natprec("card", checkpoint, "--overwrite").code == 0
    assert natprec("card", checkpoint).code == 0, "its own is replaced"
    assert natprec("card", checkpoint.parent / "none").code == 2


def test_a_card_does_not_keep_its_folder_from_being_replaced(checkpoint: Path) -> None:
    assert natprec("card", checkpoint).code == 0
    refuse_foreign(checkpoint)
    (checkpoint / "README.md").write_text("mine")
    with pytest.raises(OutputError, match=r"README\.md"):
        refuse_foreign(checkpoint)
