"""Where second order ends the estimate is not believed: one token must not outweigh all others."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from natprec.formats import integer
from natprec.measurement.curves import Curve
from natprec.measurement.measure import measure
from natprec.measurement.spot_check import _checked, not_believed
from natprec.measurement.subject import Subject
from natprec.measurement.sweep import sweep
from natprec.tasks import Samples
from natprec.utils.progress import Stages
from tests.arrange import curve, measurement, subject, tokens

FORMATS = tuple(integer(bits, 32) for bits in (2, 4, 8))
DEAD = 90
"""A token whose embedding was never trained; the text has it once."""


def text_with_one(token: int) -> Samples:
    """(8, 16): half of the vocabulary never occurs, and many tokens once."""
    text = tokens(8, 16, vocabulary=60)
    text.ids[3, 5] = token
    return text


def models(kind: str) -> Any:
    """A small model that norms its embeddings at once."""
    import transformers

    sizes = {"hidden_size": 32, "intermediate_size": 64, "vocab_size": 96, "num_hidden_layers": 2,
             "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "layer_types": ["full_attention"] * 2,
             "bos_token_id": 0, "eos_token_id": 1}  # fmt: skip
    if kind != "gemma3":
        return subject(tie_word_embeddings=kind == "tied").model
    model = transformers.Gemma3ForCausalLM(transformers.Gemma3TextConfig(**sizes))  # type: ignore[arg-type]
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(4)
    return model.eval()


@pytest.mark.parametrize("row", [0.0, 1e-5])
@pytest.mark.parametrize("kind", ["tied", "untied", "gemma3"])
def test_a_row_of_zeros_is_no_example_of_others(kind: str, row: float) -> None:
    """Its gradient is 1/√eps times the others'; the estimate was 10⁵ times what it is with another row."""
    model, text = models(kind), text_with_one(DEAD)
    made = Subject.in_memory(model, None, "small")
    site = next(site for site in made.sites if site.role == "embedding")

    def swept() -> np.ndarray:
        curves = sweep(made.segmented, [site], {site.name: FORMATS}, text, scale_dtype=made.storage_dtype, seed=0)
        return curves[site.name].kl()

    alive = swept()
    with torch.no_grad():
        model.get_input_embeddings().weight[DEAD] = row * torch.randn(32)
    assert (swept() < 2 * alive).all()
    assert (swept() > alive / 2).all()


def test_without_outliers_all_rare_rows_are_examples(monkeypatch: pytest.MonkeyPatch) -> None:
    """To the bit: the bound is where no ordinary model comes."""
    made, text = subject(), text_with_one(DEAD)
    site = next(site for site in made.sites if site.role == "embedding")

    def swept() -> np.ndarray:
        curves = sweep(made.segmented, [site], {site.name: FORMATS}, text, scale_dtype=made.storage_dtype, seed=0)
        return curves[site.name].forward

    bounded = swept()
    monkeypatch.setattr("natprec.measurement.fisher.OUTWEIGHS", float("inf"))
    assert np.array_equal(bounded, swept())


def test_an_estimate_far_from_the_exact_value_gives_way_to_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """At a site that the look over the depth does not take."""
    made, text, lines, name = subject(), tokens(8, 16), list[str](), "model.layers.0.self_attn.q_proj"

    def blown_up(*arguments: Any, **options: Any) -> dict[str, Curve]:
        curves = sweep(*arguments, **options)
        return {**curves, name: replace(curves[name], forward=1e7 * curves[name].forward)}

    monkeypatch.setattr("natprec.measurement.measure.sweep", blown_up)
    stages = Stages(quiet=True)
    stages.note = lines.append  # type: ignore[method-assign]
    found = measure(made, text, engine="natprec", group_size=32, rounding="rtn", stages=stages)
    row = found.header.checks[-1]
    assert row[0] == name
    assert row[2] > 1e5 * row[3]
    assert any(f"{name} as {row[1]} costs {row[3]:.3g}, not {row[2]:.3g}" in line for line in lines)
    exactly = measure(made, text, engine="natprec", group_size=32, rounding="rtn", estimator="exact")
    for site, own in found.curves.items():
        assert np.array_equal(own.forward, exactly.curves[site].forward) == (site == name)


def test_what_one_text_outweighs_is_checked_too() -> None:
    """Two of a hundred sites, at places that the look over the depth does not take."""
    ordinary = [curve(f"layer.{i}", [1e-2, 1e-4, 1e-6], FORMATS) for i in range(100)]
    assert len(list(_checked(measurement(ordinary)))) == 4
    lopsided = curve("layer.7", [1e-2, 1e-4, 1e-6], FORMATS)
    lopsided.forward[0, 2] *= 1e5
    dear = curve("layer.50", [3.0, 2.0, 1.0], FORMATS)
    curves = [*ordinary[:7], lopsided, *ordinary[8:50], dear, *ordinary[51:]]
    checked = [site.name for site, _ in _checked(measurement(curves))]
    assert checked == ["layer.0", "layer.33", "layer.66", "layer.99", "layer.7", "layer.50"]


def test_what_is_believed() -> None:
    curves = [curve(name, [1e-2, 1e-4, 1e-6], FORMATS) for name in "abcd"]
    checks = [("a", "int4-g32", 1.0, 0.5), ("b", "int4-g32", 1.0, 1e-5), ("c", "int4-g32", 1e-5, 1.0),
              ("d", "int4-g32", 1e-9, 1e-12)]  # fmt: skip
    assert not_believed(measurement(curves, checks=checks)) == ["b", "c"]
