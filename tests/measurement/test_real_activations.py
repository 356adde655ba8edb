"""Real models: estimates of activations against exact values, and plans with rounded inputs against what they cost.

The figures asked for are medians of |log2(Fisher / exact)| of at most 0.25, and measured / predicted of 0.8 to 1.2; the
limits here are wider by what few tokens can show. The text is the licence, which never changes.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from natprec.config import QuantizeConfig
from natprec.measurement.exact import exact_curves
from natprec.measurement.measure import measure
from natprec.measurement.subject import Subject
from natprec.measurement.sweep import sweep
from natprec.models.activation_sites import activation_formats
from natprec.pipeline.request import open_subject
from natprec.pipeline.rounded import round_to_plan
from natprec.rounding.flows import flows_rounded
from natprec.tasks import Samples
from natprec.utils.progress import Stages
from tests.arrange import restore, snapshot

pytestmark = pytest.mark.slow

QUIET = Stages(quiet=True)


def licence(of: Subject, sequences: int, length: int, skip: int = 0) -> Samples:
    text = (Path(__file__).parents[2] / "LICENSE").read_text(encoding="utf-8")
    ids = of.tokenizer(text, add_special_tokens=False)["input_ids"][skip * length :]
    return Samples.text(torch.tensor(ids[: sequences * length]).view(sequences, length))


@pytest.mark.parametrize(("model", "sites", "draws"), [("minilm", 30, 16), ("smollm2", 12, 12)])
def test_fisher_meets_exact(model: str, sites: int, draws: int, request: pytest.FixtureRequest) -> None:
    of = open_subject(QuantizeConfig(request.getfixturevalue(model), eps=1.0), QUIET)
    few = licence(of, 4, 20, skip=4)
    found = [site for site in of.activations if "pooler" not in site.name]
    chosen = [found[i] for i in np.linspace(0, len(found) - 1, sites).round().astype(int)]
    flows = {site: activation_formats(site, None)[:6] for site in chosen}  # 3 to 8 bits
    many = Samples.text(few.ids.repeat(draws, 1))
    curves = sweep(of.segmented, [], {}, many, scale_dtype=torch.bfloat16, seed=0, activations=flows)
    logs = np.stack([
        np.log2(curves[site.name].forward[0].mean(0) / values.mean(0))
        for site, values in exact_curves(of.segmented, list(flows.items()), few, torch.bfloat16)
    ])  # fmt: skip
    for site, log in zip(chosen, logs, strict=True):
        print(f"{site.name:45}", np.round(log, 2))
    print(
        f"{len(logs)} sites: median {np.median(np.abs(logs)):.3f}, by width {np.round(np.median(np.abs(logs), 0), 2)}"
    )
    assert np.median(np.abs(logs)) <= 0.35


def test_a_joint_plan_costs_what_it_says(minilm: str) -> None:
    of = open_subject(QuantizeConfig(minilm, eps=1.0), QUIET)
    text, held_out = licence(of, 20, 64), licence(of, 12, 64, skip=20)
    measured = measure(of, text, engine="natprec", sites="all", rounding="rtn")
    original = snapshot(of.model)
    expected = of.segmented.output(held_out)
    for eps in (0.3, 0.1, 0.03):
        for activations in ("8", "auto"):
            plan = measured.solve(eps=eps, activations=activations)
            round_to_plan(of, plan, None, "rtn", QUIET)
            with flows_rounded(of.model, of.activations, plan):
                distance = float(of.distortion.between(expected, of.segmented.output(held_out), held_out).mean())
            restore(of.model, original)
            ratio, inputs = distance / plan.kl_predicted, sorted(choice.bits for choice in plan.inputs.values())
            print(f"eps {eps} {activations}: {plan.bits_per_weight:.3f} bits, inputs {inputs}, {ratio:.3f}")
            assert 0.5 < ratio < 1.6
