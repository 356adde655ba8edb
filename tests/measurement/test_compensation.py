"""Rescaling is decided for each fused group, by what GPTQ then leaves; a plan that supposes it is rounded that way."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch

from natprec.distortions.divergence import forward_kl
from natprec.formats import integer
from natprec.measurement import Measurement
from natprec.measurement.gptq_ratio import JUDGING, Compensation, deciding_format
from natprec.measurement.measure import DIFFERENTIATED, MANY, measure, shared_out
from natprec.measurement.subject import Subject
from natprec.quantizers import quantize
from natprec.quantizers.gram import mirrored as whole
from natprec.tasks import Samples
from natprec.utils.progress import Stages
from tests.arrange import apply_plan, restore, snapshot, subject, tokens

TEXT = tokens(8, 32)
QUERY = "model.layers.1.self_attn.q_proj"


def uneven() -> Subject:
    """A model with a few small channels, at one norm, that meet large columns; it is still the same function."""
    made = subject()
    block = made.model.model.layers[1]
    block.input_layernorm.weight.data[::8] /= 16
    for name in "qkv":
        getattr(block.self_attn, f"{name}_proj").weight.data[:, ::8] *= 16
    return made


def measured(made: Subject, **options: Any) -> Measurement:
    return measure(made, TEXT, engine="natprec", group_size=32, **options)


def test_a_fused_group_is_rescaled_where_that_leaves_less() -> None:
    made = uneven()
    plain, auto = measured(made, transforms="none"), measured(made)
    assert not any(curve.scaled for curve in plain.curves.values())
    assert auto.curves[QUERY].scaled
    for name in (QUERY, QUERY.replace("q_proj", "v_proj")):
        before, after = plain.curves[name], auto.curves[name]
        assert np.array_equal(before.forward, after.forward), "rounding to nearest is measured as it is"
        four = [i for i, fmt in enumerate(after.formats) if fmt.bits <= 5]
        assert (after.shares[four] < before.shares[four]).all()
    by_fused_group: dict[str, set[bool]] = {}
    for curve in auto.curves.values():
        by_fused_group.setdefault(curve.site.fused_group, set()).add(curve.scaled)
    assert all(len(found) == 1 for found in by_fused_group.values())
    assert auto.solve(bits=4.5).kl_predicted < plain.solve(bits=4.5).kl_predicted


def test_a_weight_that_a_format_holds_exactly_keeps_its_grid() -> None:
    """A share of no distortion is none, but rescaled columns would have one."""
    made = uneven()
    fmt = integer(5, 32)  # not the width at which it is decided
    for name in "qkv":
        weight = made.model.get_submodule(QUERY.replace("q_proj", f"{name}_proj")).weight
        weight.data = quantize(weight, fmt, made.storage_dtype).dequantize()
    exact, others = measured(made), measured(uneven())
    assert others.curves[QUERY].scaled
    for name in "qkv":
        curve = exact.curves[QUERY.replace("q_proj", f"{name}_proj")]
        assert not curve.scaled
        assert curve.kl("gptq")[curve.formats.index(fmt)] == 0


def test_a_plan_says_so_and_is_rounded_so() -> None:
    made = uneven()
    reference, original = made.segmented.output(TEXT), snapshot(made.model)
    norm = made.model.model.layers[1].input_layernorm
    kl = {}
    for transforms in ("none", "auto"):
        plan = measured(made, transforms=transforms).solve(bits=4.5)
        assert plan.sites[QUERY].scaled == (transforms == "auto")
        apply_plan(made.segmented, made.sites, plan, TEXT, "gptq", made.storage_dtype, gauges=made.gauges)
        assert torch.equal(norm.weight, original["model.layers.1.input_layernorm.weight"]) == (transforms == "none")
        kl[transforms] = float(forward_kl(reference, made.segmented.output(TEXT)).mean())
        restore(made.model, original)
        assert torch.equal(made.segmented.output(TEXT), reference)
    assert kl["auto"] < kl["none"]


def test_a_plan_for_rounding_to_nearest_rescales_nothing() -> None:
    plan = measured(uneven()).solve(bits=4.5, rounding="rtn")
    assert not any(choice.scaled for choice in plan.sites.values())


def test_decided_at_the_width_next_to_four_and_its_smallest_groups() -> None:
    formats = [integer(8, 32), integer(5, 64), integer(5, 32), integer(2, 32)]
    assert deciding_format(formats, 64) == 2


@pytest.mark.parametrize("parts", [1, 2])
def test_one_in_two_sequences_of_each_part_goes_back(parts: int) -> None:
    text = Samples.text(torch.arange(parts * MANY).unsqueeze(1))
    back, forward = shared_out(text, parts, routed=False)
    assert forward is not None
    assert back.ids.flatten().tolist() == list(range(1, parts * MANY, DIFFERENTIATED))
    assert sorted(back.followed_by(forward).ids.flatten().tolist()) == list(range(parts * MANY))


def test_all_go_back_where_they_are_few_or_experts_see_few_or_rounding_takes_long() -> None:
    few, many = tokens(MANY - 1, 8), tokens(MANY, 8)
    for text, routed, rounding in ((few, False, "gptq"), (many, True, "gptq"), (many, False, "learned")):
        back, forward = shared_out(text, 1, routed, rounding)
        assert back is text
        assert forward is None


def test_sequences_that_only_go_forward_are_fitted_to() -> None:
    """Second moments of what goes back and does not judge, and of all that goes forward; one in four judges."""
    made, text = subject(), tokens(MANY, 16)
    back, forward = shared_out(text, 1, routed=False)
    assert forward is not None
    site = next(site for site in made.sites if site.name == QUERY)
    seen: list[torch.Tensor] = []
    handle = made.model.get_submodule(QUERY).register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    fitted: dict[str, torch.Tensor] = {}
    kept, last = Compensation.judged, list[torch.Tensor]()

    def mirrored(upper: torch.Tensor) -> torch.Tensor:
        last.append(upper.clone())
        return whole(upper)

    def judged(self: Compensation) -> Any:
        fitted.setdefault(self.site.fused_group, last[-1])
        assert len(self.judging) == MANY // JUDGING
        return kept(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Compensation, "judged", judged)
        patch.setattr("natprec.measurement.gptq_ratio.mirrored", mirrored)
        measure(made, text, engine="natprec", group_size=32)
    seen.clear()
    made.segmented.output(forward.followed_by(back[::2]))  # of those that go back every second one judges
    handle.remove()
    rows = seen[0].flatten(0, 1).double()
    torch.testing.assert_close(fitted[site.fused_group].triu(), (rows.T @ rows).triu(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("tied", [True, False])
def test_progress_comes_to_what_was_announced(tied: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("natprec.tasks.samples.BATCH_TOKENS", 48)  # three sequences
    announced: dict[str, int | None] = {}
    calls: dict[str, int] = {}

    class Counting(Stages):
        @contextlib.contextmanager
        def stage(self, name: str, steps: int | None = None) -> Iterator[Callable[[str], None]]:
            announced[name], calls[name] = steps, 0
            with super().stage(name, steps):
                yield lambda _: calls.update({name: calls[name] + 1})

    made = subject(tie_word_embeddings=tied)
    measure(made, tokens(MANY, 16), stages=Counting(quiet=True), engine="natprec", group_size=32)
    assert calls == announced
