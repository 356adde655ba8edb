"""Learning against the end: nearer on other text, on the grid, never worse, the same after a kill."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from natprec.formats import GGUF_TYPES, Format, integer
from natprec.measurement.subject import Subject
from natprec.models.weight_sites import site_layer, site_weight
from natprec.quantizers import QuantizedTensor, quantize
from natprec.rounding import learnable as rates
from natprec.rounding import learning_state, to_end
from natprec.rounding.learnable import Learnable
from natprec.rounding.learning_state import Kept, Progress
from natprec.rounding.teacher import HeldBack, Teacher
from natprec.rounding.to_end import Budget, Outcome, learn_to_end
from natprec.tasks import Samples
from natprec.utils.workers import Workers
from tests.arrange import encoder, restore, snapshot, subject, tokens
from tests.measurement.test_sharding import BUILDING, together

THREE = integer(3, 32)
STEPS = 32


@dataclass
class Start:
    """A model rounded to nearest, and all that learning needs."""

    made: Subject
    original: dict[str, Tensor]
    codes: dict[str, QuantizedTensor]
    learnable: Learnable
    teacher: Teacher
    held_back: HeldBack


def batch(step: int) -> Samples:
    """Other text at each step."""
    return tokens(4, 24, seed=100 + step)


def start(make: Callable[[], Subject] = subject, fmt: Format = THREE, workers: Workers | None = None) -> Start:
    with BUILDING:
        made = make()
    made.segmented.workers = workers or Workers()
    original = snapshot(made.model)
    codes = {site.name: quantize(site_weight(made.model, site), fmt, torch.float16) for site in made.sites}
    unrounded = {site.name: site_layer(made.model, site).matrix.detach().clone() for site in made.sites}
    layers = {site.name: site_layer(made.model, site) for site in made.sites}
    for site in made.sites:
        layers[site.name].put(codes[site.name].dequantize())
    learnable = Learnable(made.segmented, layers, codes, unrounded, torch.float16)
    held_back = HeldBack(made.segmented, original, tokens(8, 24, seed=7))
    return Start(made, original, codes, learnable, Teacher(made.segmented, original), held_back)


def learned(begun: Start, steps: int = STEPS, **options: Any) -> Outcome:
    options = {"kept": Kept(None, ""), "beside": {}, "batch_of": batch, "budget": Budget(steps), **options}
    batch_of, budget = options.pop("batch_of"), options.pop("budget")
    return learn_to_end(begun.learnable, begun.teacher, begun.held_back, batch_of, budget, **options)


def distortion(begun: Start, text: Samples) -> float:
    present, made = snapshot(begun.made.model), begun.made
    found = made.segmented.output(text)
    restore(made.model, begun.original)
    value = made.distortion.between(made.segmented.output(text), found, text).mean()
    restore(made.model, present)
    return float(value)


@pytest.mark.parametrize("make", [subject, encoder])
def test_the_distortion_falls_on_other_text(make: Any) -> None:
    begun, others = start(make), tokens(16, 24, seed=5)
    before = distortion(begun, others)
    outcome = learned(begun)
    assert outcome.after < 0.9 * outcome.before
    assert distortion(begun, others) < 0.9 * before


@pytest.mark.parametrize(
    "fmt", [THREE, integer(3, 32, symmetric=False), GGUF_TYPES["Q4_1"]], ids=lambda fmt: str(fmt.name)
)
def test_the_model_holds_codes_and_scales_that_the_format_stores(fmt: Format, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rates, "CODES", 0.03)  # far enough in so few steps
    falling = iter(range(99, 0, -1))
    monkeypatch.setattr(HeldBack, "distortion", lambda self: float(next(falling)))
    begun, changed = start(fmt=fmt), 0
    outcome = learned(begun, 12)
    low, high = fmt.code_range
    assert outcome.codes.keys() == begun.codes.keys()
    for site in begun.made.sites:
        value, weight = outcome.codes[site.name], site_weight(begun.made.model, site)
        assert low <= int(value.codes.min()) <= int(value.codes.max()) <= high
        changed += int((value.codes != begun.codes[site.name].codes).sum())
        assert not torch.equal(value.scale, begun.codes[site.name].scale)
        assert torch.equal(value.scale, value.scale.half().float())
        assert torch.equal(weight, value.dequantize())
        assert not weight.requires_grad
        assert weight.grad is None
    assert changed
    norm = begun.made.model.model.norm.weight
    assert not torch.equal(norm, begun.original["model.norm.weight"])
    assert torch.equal(norm, norm.half().float())


def test_what_does_not_help_is_undone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rates, "SCALES", -0.05)
    begun = start()
    weights = snapshot(begun.made.model)
    outcome = learned(begun, 20)
    assert outcome.after == outcome.before
    assert all(torch.equal(outcome.codes[name].codes, codes.codes) for name, codes in begun.codes.items())
    assert all(torch.equal(weights[name], value) for name, value in snapshot(begun.made.model).items())


def test_it_ends_when_nothing_better_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rates, "SCALES", -0.05)
    monkeypatch.setattr(learning_state, "PATIENCE", 2)
    assert learned(start(), 120).steps == 20, "two judgments of twelve"


def test_the_best_that_was_judged_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rates, "CODES", 0.03)
    monkeypatch.setattr(learning_state, "PATIENCE", 99)
    begun = start()
    values = iter([5.0, 3.0, 1.0, *[2.0] * 20])
    monkeypatch.setattr(HeldBack, "distortion", lambda self: next(values))
    seen: list[dict[str, QuantizedTensor]] = []
    outcome = learned(begun, 12, say=lambda line: seen.append(begun.learnable.codes))
    assert (outcome.before, outcome.after) == (5.0, 1.0)
    assert all(torch.equal(outcome.codes[name].codes, seen[1][name].codes) for name in outcome.codes)
    assert any(not torch.equal(seen[1][name].codes, seen[-1][name].codes) for name in outcome.codes)
    for site in begun.made.sites:
        assert torch.equal(site_weight(begun.made.model, site), outcome.codes[site.name].dequantize())


def test_time_bounds_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock that goes on by six seconds whenever it is asked."""
    clock = iter(range(0, 10**6, 6))
    monkeypatch.setattr(to_end, "time", SimpleNamespace(monotonic=lambda: float(next(clock))))
    outcome = learned(start(), budget=Budget(10**9, minutes=1.0))
    assert outcome.steps == 10
    assert outcome.seconds == 60


class _KilledError(Exception):
    pass


def test_a_killed_run_goes_on_to_the_same_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rates, "CODES", 0.03)
    monkeypatch.setattr(learning_state, "PATIENCE", 99)
    fmt = integer(3, 32, symmetric=False)
    whole = learned(start(fmt=fmt), 24)
    kept, begun = Kept(tmp_path / "state", "same"), start(fmt=fmt)

    def kill(label: str) -> None:
        if label.startswith("step 15,"):
            raise _KilledError

    with pytest.raises(_KilledError):
        learned(begun, 24, kept=kept, advance=kill)
    found, asked = kept.found(), list[int]()
    assert found is not None
    assert found[1].step == 14

    def counted(step: int) -> Samples:
        asked.append(step)
        return batch(step)

    resumed = learned(start(fmt=fmt), 24, kept=kept, found=found, batch_of=counted)
    assert asked == list(range(14, 24))
    assert resumed.after == whole.after
    assert resumed.before == whole.before
    for name, codes in whole.codes.items():
        assert torch.equal(codes.codes, resumed.codes[name].codes)
        assert torch.equal(codes.scale, resumed.codes[name].scale)
    assert replace(kept, key="other").found() is None
    asked.clear()
    done = learned(start(fmt=fmt), 24, kept=kept, found=kept.found(), batch_of=counted)
    assert done.after == whole.after
    assert not asked


@pytest.mark.parametrize("make", [subject, encoder])
def test_several_processes_learn_together(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """As well as one, and all of them the same; their sums are added up in another order."""
    monkeypatch.setattr(rates, "CODES", 0.03)
    alone = learned(start(make), 12)

    def work(workers: Workers) -> tuple[Outcome, dict[str, Tensor]]:
        begun = start(make, workers=workers)
        return learned(begun, 12, kept=Kept(None, "", workers)), snapshot(begun.made.model)

    results = together(3, work)
    for outcome, weights in results:
        assert outcome.before == pytest.approx(alone.before, rel=1e-4)
        assert outcome.after < 0.95 * outcome.before
        assert outcome.after == pytest.approx(alone.after, rel=0.1)
        for name, codes in results[0][0].codes.items():
            assert torch.equal(codes.codes, outcome.codes[name].codes)
            assert torch.equal(codes.scale, outcome.codes[name].scale)
        assert all(torch.equal(results[0][1][name], value) for name, value in weights.items())


def test_any_number_of_processes_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the last step that both of two had kept: the second step's files are not complete."""
    monkeypatch.setattr(learning_state, "PATIENCE", 99)

    def kill(label: str) -> None:
        if label.startswith("step 7,"):
            raise _KilledError

    def killed(workers: Workers) -> float:
        with pytest.raises(_KilledError):
            learned(start(workers=workers), 24, kept=Kept(tmp_path / "state", "same", workers), advance=kill)
        return 0.0

    def resumed(workers: Workers) -> tuple[int, Outcome]:
        kept = replace(Kept(tmp_path / f"again{workers.size}", "same"), workers=workers)
        found = replace(kept, file=tmp_path / "state").found()
        assert found is not None
        return found[1].step, learned(start(workers=workers), 24, kept=kept, found=found)

    together(2, killed)
    assert sorted(file.name for file in tmp_path.iterdir()) == [f"state-00000006-{rank}of2" for rank in range(2)]
    (tmp_path / "state-00000008-1of2").write_bytes((tmp_path / "state-00000006-1of2").read_bytes())
    whole = learned(start(), 24)
    for size in (1, 2, 3):
        for step, outcome in together(size, resumed):
            assert step == 6
            assert outcome.steps == 24
            assert outcome.after == pytest.approx(whole.after, rel=0.1)


@pytest.mark.parametrize("make", [subject, encoder])
def test_gradients_by_segment_are_those_of_the_whole(make: Any) -> None:
    begun = start(make)
    found = []
    for by_segment in (False, True):
        begun.teacher.descend(batch(0), begun.learnable.parameters, by_segment)
        found.append([each.grad for each in begun.learnable.parameters])
        for each in begun.learnable.parameters:
            each.grad = None
    compared = 0
    for whole, parts in zip(*found, strict=True):
        assert (whole is None) == (parts is None)
        if whole is not None and parts is not None:
            torch.testing.assert_close(whole, parts, rtol=1e-3, atol=1e-3 * float(whole.abs().max()) + 1e-12)
            compared += 1
    assert compared >= len(begun.codes)


def test_how_much_it_gained() -> None:
    progress = Progress(seconds=120.0, judged=[0.5, 0.45, 0.4, 0.41])
    assert progress.best == 2
    assert progress.gain == "0.1 gained, 0.05 a minute"
