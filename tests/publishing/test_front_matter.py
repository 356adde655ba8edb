"""Front matter keeps the Hub's own rules (hub-docs: modelcard.md, model-cards.md), and cards are their rendering."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from natprec.publishing.base import Base, Published
from natprec.publishing.card import render
from natprec.publishing.contents import read_contents
from natprec.publishing.ladder import rendered
from tests.publishing.test_card import front_of

CARDS = Path(__file__).parents[2] / "model_cards"
RELATIONS = {"adapter", "merge", "quantized", "finetune"}
TEXT = {"base_model", "base_model_relation", "library_name", "pipeline_tag", "license", "license_name", "license_link"}
KNOWN = TEXT | {"language", "tags", "model-index"}


def refuse_front_matter(front: dict[str, Any]) -> None:
    """Required keys of model-index, kinds of values, and which fields go together."""
    assert front.keys() <= KNOWN, "and no `datasets`: the Hub shows them as trained on"
    assert all(isinstance(front[name], str) and front[name] for name in TEXT & front.keys())
    assert front["library_name"] in ("transformers", "gguf", "sentence-transformers")
    assert all(isinstance(tag, str) for tag in front["tags"])
    assert ("base_model" in front) == ("base_model_relation" in front)
    assert front.get("base_model_relation", "quantized") in RELATIONS
    assert ("license_name" in front) <= (front.get("license") == "other")
    for language in front.get("language", []):
        assert 2 <= len(language) <= 3
    for model in front.get("model-index", []):
        assert isinstance(model["name"], str)
        for result in model["results"]:
            assert isinstance(result["task"]["type"], str)
            assert {"type", "name"} <= result["dataset"].keys()
            for metric in result["metrics"]:
                assert isinstance(metric["type"], str)
                assert isinstance(metric["value"], float | int)


BASE = Base("alice/tiny", "0" * 40, compared=True)


@pytest.mark.parametrize(
    "base",
    [
        BASE,
        replace(BASE, license="apache-2.0", language=["en", "de"], pipeline_tag="text-generation", public=True),
        replace(BASE, license="other", license_name="tiny-terms", license_link="https://example.org/terms"),
        None,
    ],
)
def test_the_hub_takes_it(made: Path, base: Base | None) -> None:
    contents = read_contents(made)
    card = render(replace(contents, published=Published("alice/tiny-natprec", "main", base)))
    front = front_of(card)
    refuse_front_matter(front)
    assert front["model-index"][0]["name"] == "tiny-natprec"
    if base is not None:
        assert front.get("license") == base.license
    if base is not None and base.license == "other":
        assert "tiny-terms (https://example.org/terms)" in card


def test_the_rules_can_be_broken(made: Path) -> None:
    front = front_of(render(read_contents(made)))
    for wrong in ({"datasets": ["x"]}, {"base_model_relation": "copy"}, {"license_name": "x"}, {"tags": [1]}):
        with pytest.raises(AssertionError):
            refuse_front_matter({**front, **wrong})


@pytest.mark.parametrize("folder", sorted(file.parent.name for file in CARDS.glob("*/plan.json")))
def test_cards_of_the_repository_are_their_rendering(folder: str) -> None:
    content = rendered(CARDS / folder)
    assert (CARDS / folder / "README.md").read_text(encoding="utf-8") == content
    refuse_front_matter(front_of(content))
