"""The look at a plan, where the joint is known in closed form: sums of Linears under a squared error."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from natprec.distortions import OutputKL
from natprec.distortions.base import for_each
from natprec.evaluation.verification import compare
from natprec.measurement import Measurement
from natprec.measurement.measure import measure
from natprec.measurement.module import subject_of_module
from natprec.measurement.subject import Subject
from natprec.models.weight_sites import site_layer, site_weight
from natprec.pipeline.joint import PlanLook
from natprec.pipeline.rounded import round_to_plan
from natprec.quantizers import quantize
from natprec.rounding.joint import OWN_DRAWS, Look
from natprec.solver.joint import Joint, shares_of
from natprec.solver.plan import Plan
from natprec.tasks import Samples
from natprec.utils.progress import Stages
from tests.conftest import tiny_model

IN, COUNT = 64, 12


class Added(nn.Module):
    """Σ_v sign_v · W_v x, with one output: D = (Σ_v sign_v · δ_v x)², and every draw of its sign gives that exactly."""

    def __init__(self, signs: tuple[float, ...], alike: bool, outputs: int = 1) -> None:
        super().__init__()
        self.signs = signs
        self.parts = nn.ModuleDict({f"w{place}": nn.Linear(IN, outputs, bias=False) for place in range(len(signs))})
        if alike:
            for part in self.parts.values():
                part.weight = nn.Parameter(self.parts["w0"].weight.detach().clone())

    def forward(self, x: Tensor) -> Tensor:
        return sum(sign * part(x) for sign, part in zip(self.signs, self.parts.values(), strict=True))


def planned(module: nn.Module, bits: float = 3.6) -> tuple[Subject, Samples, Measurement, Plan]:
    samples = Samples.of({"x": torch.randn(COUNT, IN)})
    subject = subject_of_module(module, samples)
    measurement = measure(subject, samples, engine="natprec", rounding="rtn", group_size=64)
    return subject, samples, measurement, measurement.solve(bits=bits)


def looked(module: nn.Module) -> tuple[Subject, Samples, Plan, Joint]:
    subject, samples, measurement, plan = planned(module)
    return subject, samples, plan, looked_at(subject, measurement, plan, samples)


def looked_at(
    subject: Subject, measurement: Measurement, plan: Plan, samples: Samples, folder: Path | None = None
) -> Joint:
    look = PlanLook(subject, measurement, samples, Stages(quiet=True), folder)
    return look.completed(plan, look.points(plan))


def errors(subject: Subject, plan: Plan, samples: Samples) -> np.ndarray:
    """(sites, samples): δ_v x, by hand."""
    found = []
    for site in subject.sites:
        weight, fmt = site_weight(subject.model, site).detach(), plan.sites[site.name].format
        assert fmt is not None
        error = quantize(weight, fmt, subject.storage_dtype).dequantize() - weight
        found.append((samples.tensors["x"] @ error.T).squeeze(1))
    return torch.stack(found).double().numpy()


def test_the_joint_is_the_square_of_all_errors_together() -> None:
    subject, samples, plan, found = looked(Added((1.0, -1.0, 1.0), alike=False))
    own = errors(subject, plan, samples) * np.array([[1.0], [-1.0], [1.0]])
    assert np.square(found.along.sum(0)) == pytest.approx(np.square(own.sum(0)), rel=1e-4, abs=1e-9)
    assert np.square(found.along) == pytest.approx(np.square(own), rel=1e-4, abs=1e-9)
    assert found.measured == pytest.approx(np.square(own.sum(0)), rel=1e-4, abs=1e-9)
    assert found.halved == pytest.approx(np.square(own.sum(0)) / 4, rel=1e-4, abs=1e-9)
    assert found.sums.mean() == pytest.approx(plan.kl_sum)


@pytest.mark.parametrize(("signs", "factor"), [((1.0, 1.0), 2.0), ((1.0,) * 4, 4.0), ((1.0, -1.0), 0.0)])
def test_equal_errors_cost_as_many_times_their_sum_as_there_are_sites(signs: tuple[float, ...], factor: float) -> None:
    subject, samples, plan, found = looked(Added(signs, alike=True))
    separate = float(np.square(errors(subject, plan, samples)).sum(0).mean())
    assert found.kl_joint / plan.kl_sum == pytest.approx(factor, rel=1e-3, abs=1e-6)
    assert found.measured.mean() / separate == pytest.approx(factor, rel=1e-3, abs=1e-6)
    if factor:
        assert found.apart
        shown = found.shown(plan)
        assert shown.kl_predicted == pytest.approx(found.measured.mean(), rel=1e-3)
        assert shown.kl_predicted > 1.5 * shown.kl_sum
        assert shown.kl_predicted_ci95[0] <= shown.kl_predicted


def test_what_is_predicted_is_what_the_rounded_module_costs() -> None:
    subject, samples, plan, found = looked(Added((1.0,) * 4, alike=True, outputs=3))
    with torch.no_grad():
        expected = iter([subject.segmented.output(batch) for batch in samples.split()])
    with subject.segmented.weights.hold(subject.model.parameters()):
        round_to_plan(subject, plan, None, "rtn", Stages(quiet=True))
        cost = compare(
            lambda _: next(expected), subject.segmented.output, samples, distortion=subject.distortion
        ).summary()
    assert found.shown(plan).kl_predicted == pytest.approx(cost["kl_mean"], rel=1e-3)


def test_many_independent_sites_keep_their_sum() -> None:
    _, _, plan, found = looked(Added((1.0,) * 40, alike=False, outputs=16))
    assert found.alignment == pytest.approx(1, abs=0.3)
    assert found.predicted(plan.kl_sum) == pytest.approx(plan.kl_sum, rel=0.3)


def language_model(rounding: str = "rtn", sites: str = "weights") -> tuple[Subject, Samples, Measurement]:
    subject = Subject.in_memory(tiny_model(), None)
    samples = Samples.text(torch.randint(512, (8, 32)))
    measurement = measure(
        subject, samples, engine="natprec", rounding=rounding, group_size=32, transforms="none", sites=sites
    )
    return subject, samples, measurement


@pytest.mark.parametrize("activations", ["16", "8"])
def test_a_language_model_s_rounded_weights_and_inputs_are_what_is_measured(activations: str) -> None:
    from natprec.rounding.flows import flows_rounded

    subject, samples, measurement = language_model(sites="weights" if activations == "16" else "all")
    plan = measurement.solve(bits=3.0, rounding="rtn", activations=activations)
    before = {name: each.clone() for name, each in subject.model.named_parameters()}
    found = looked_at(subject, measurement, plan, samples)
    assert all(torch.equal(before[name], each) for name, each in subject.model.named_parameters())
    with torch.no_grad():
        expected = [subject.segmented.output(batch) for batch in samples.split()]
    with subject.segmented.weights.hold(subject.model.parameters()):
        round_to_plan(subject, plan, None, "rtn", Stages(quiet=True))
        flowing = subject.activations if activations != "16" else []
        with torch.no_grad(), flows_rounded(subject.model, flowing, plan):
            other = [subject.segmented.output(batch) for batch in samples.split()]
    own = [
        subject.distortion.between(one, two, batch).mean(1)
        for one, two, batch in zip(expected, other, samples.split(), strict=True)
    ]
    assert found.measured == pytest.approx(torch.cat(own).numpy(), rel=1e-3)


@pytest.mark.parametrize("bits", [8.0, 4.0])
def test_half_of_the_errors_of_weights_and_of_what_flows_costs_a_quarter(bits: float) -> None:
    """With what flows rounded whole in both, two measured distortions would be nearly the same at 8 bits."""
    subject, samples, measurement = language_model(sites="all")
    plan = measurement.solve(bits=bits, rounding="rtn", activations="8")
    found = looked_at(subject, measurement, plan, samples)
    assert found.measured.sum() / found.halved.sum() == pytest.approx(4, rel=0.1)


@pytest.mark.parametrize("activations", ["16", "8"])
def test_each_site_s_part_is_the_drawn_scalar_s_slope_along_its_error(activations: str) -> None:
    """By a small step of all weights along their errors; of the activations' what they add to that."""
    subject, samples, measurement = language_model(sites="weights" if activations == "16" else "all")
    plan = measurement.solve(bits=4.0, rounding="rtn", activations=activations)
    found = looked_at(subject, measurement, plan, samples)
    weights = [site for site in subject.sites if plan.sites[site.name].format is not None]
    assert len(found.along) == len(weights) + len(plan.rounded_inputs)
    assert (np.abs(found.along).max(1) > 0).all()
    for number, site in enumerate(weights):
        layer, fmt = site_layer(subject.model, site), plan.sites[site.name].format
        assert fmt is not None
        weight = layer.matrix.detach().clone()
        error = quantize(weight, fmt, subject.storage_dtype).dequantize() - weight
        slopes = []
        for index in range(len(samples)):
            layer.weight.requires_grad_()
            output = subject.segmented.output(samples[index : index + 1]).float()
            subject.distortion.draw(output, range(OWN_DRAWS + index, OWN_DRAWS + index + 1), 0).backward()
            assert layer.gradient is not None
            slopes.append(float((layer.gradient * error).sum()))
            layer.weight.grad = None
            layer.weight.requires_grad_(False)
        assert found.along[number] == pytest.approx(np.array(slopes) / np.sqrt(2 * 32), rel=1e-3, abs=1e-7)


def test_gptq_s_errors_are_to_nearest_scaled_to_what_is_predicted_to_be_left() -> None:
    subject, samples, measurement = language_model("gptq")
    plan = measurement.solve(bits=3.0, rounding="gptq")
    shares = shares_of(measurement, plan)
    assert any(share < 0.9 for share in shares.values())
    whole = looked_at(subject, measurement, plan, samples)
    nearest = Look(subject, samples).along(plan, {})
    scale = np.sqrt([shares[site.name] for site in subject.sites if site.name in shares])[:, None]
    assert not whole.own
    assert len(whole.measured) == len(whole.halved) == 0
    assert (
        PlanLook(subject, measurement, samples, Stages(quiet=True))
        .points(measurement.solve(bits=3.0, rounding="rtn"))
        .own
    )
    assert whole.along == pytest.approx(nearest * scale, rel=1e-3, abs=1e-9)


def test_it_advances_as_often_as_it_says_and_draws_other_numbers_than_the_sweep(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    subject, samples, measurement = language_model()
    plan, steps, drawn = measurement.solve(bits=3.0, rounding="rtn"), list[str](), list[int]()
    look = Look(subject, samples)
    honest = OutputKL.draw

    def draw(self: OutputKL, output: Tensor, sequences: range, seed: int) -> Tensor:
        drawn.extend(sequences)
        return honest(self, output, sequences, seed)

    monkeypatch.setattr(OutputKL, "draw", draw)
    look.points(plan, {}, (1.0, 0.5), steps.append)
    assert len(steps) == look.steps(2)
    steps.clear()
    look.along(plan, {}, steps.append)
    assert 0 < len(steps) < look.steps(), "the way forward is not gone twice"
    look.along(plan, {}, steps.append)
    assert len(steps) == 2 * look.steps() - 3 * len(samples.batches()), "until the way back has used it up"
    assert len(set(drawn)) == len(samples)
    coins = [
        for_each(range(first, first + 1), 7, lambda each: torch.randint(2, (64,), generator=each))
        for first in (0, min(drawn))
    ]
    assert not torch.equal(*coins), "as in the sweep"


def test_what_was_found_is_found_again_and_another_plan_is_looked_at_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    subject, samples, measurement, plan = planned(Added((1.0, 1.0), alike=False))
    calls: list[str] = []
    for name in ("points", "along"):
        honest = getattr(Look, name)

        def counted(*args: Any, honest: Any = honest, name: str = name) -> Any:
            calls.append(name)
            return honest(*args)

        monkeypatch.setattr(Look, name, counted)
    first = looked_at(subject, measurement, plan, samples, tmp_path)
    again = looked_at(subject, measurement, plan, samples, tmp_path)
    assert calls == ["points", "along"]
    assert (again.kl_sum, again.link, again.joint_ci95) == (first.kl_sum, first.link, first.joint_ci95)
    assert (again.own, again.seed) == (True, 0)
    (file,) = tmp_path.iterdir()
    file.write_bytes(file.read_bytes()[:20])
    looked_at(subject, measurement, plan, samples, tmp_path)
    looked_at(subject, measurement, measurement.solve(bits=5.5), samples, tmp_path)
    assert calls == ["points", "along"] * 3
