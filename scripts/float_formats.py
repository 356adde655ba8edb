"""Floating-point formats: what the sweep predicts of each, beside what rounding to it costs.

    python scripts/float_formats.py --data valid.txt --eval-data test.txt      # all Linears of all blocks
    python scripts/float_formats.py --data valid.txt --exact 24 --tokens 1024         # site by site, on the same text

The first rounds the Linears of all blocks to one format, then their inputs too, and judges on other text; as in a plan,
half of the text that it measures on is the model's own, and a site costs what it costs on the worse half. The second
holds the Fisher sweep against the exact estimator: both see the same sequences, the sweep each several times.
"""

from __future__ import annotations

import argparse
import json

import numpy as np
import torch

from natprec.config import QuantizeConfig
from natprec.formats import Format
from natprec.formats.presets import FLOAT_ACTIVATIONS, FLOAT_WEIGHTS
from natprec.measurement import Curve
from natprec.measurement.exact import exact_curves
from natprec.measurement.subject import Subject
from natprec.measurement.sweep import sweep
from natprec.models.activation_sites import round_site
from natprec.models.weight_sites import Site, site_layer, site_weight
from natprec.models.weights import present_values
from natprec.pipeline.request import open_subject
from natprec.pipeline.samples import calibration_parts, calibration_samples, given_samples, held_out_samples
from natprec.quantizers import quantize
from natprec.tasks import Samples
from natprec.utils.hooks import attached
from natprec.utils.progress import Stages

PAIRS = {
    "fp8-tensor": "fp8-tensor",
    "fp8-channel": "fp8-token",
    "fp8-block128": "fp8-g128",
    "nvfp4": "nvfp4",
    "mxfp4": "mxfp4",
    "mxfp8": "mxfp8",
}
"""Weights → inputs that engines multiply them with."""

DRAWS = 12
"""Times that the sweep sees each sequence with other signs, to be held against the exact estimator."""


def linears(subject: Subject) -> list[Site]:
    """Weights of the blocks, and not of the head."""
    return [site for site in subject.sites if site.role == "linear"]


def swept(subject: Subject, samples: Samples, parts: int, inputs: bool, stages: Stages) -> dict[str, Curve]:
    """Curves of all Linears, and of their inputs."""
    wanted, every = {site.name for site in linears(subject)}, tuple(FLOAT_WEIGHTS.values())
    formats = {
        site.name: tuple(fmt for fmt in every if fmt.divides(site.shape[1])) if site.name in wanted else ()
        for site in subject.sites
    }
    flows = {
        site: tuple(fmt for fmt in FLOAT_ACTIVATIONS.values() if fmt.divides(site.shape[1]))
        for site in subject.activations
        if site.role == "linear" and inputs
    }
    with stages.stage("measure") as advance:
        return sweep(
            subject.segmented, subject.sites, formats, samples, scale_dtype=subject.storage_dtype, seed=0,
            parts=parts, activations=flows or None, advance=advance,
        )  # fmt: skip


def cost(curve: Curve, fmt: Format) -> float:
    """Of rounding to nearest."""
    return float(curve.kl("rtn")[curve.formats.index(fmt)])


@torch.no_grad()
def judged(subject: Subject, samples: Samples, weights: Format, inputs: dict[str, tuple[Format, float]]) -> float:
    """Mean distortion of all Linears in one format, and inputs by site name in one with its largest magnitude."""
    model, segmented = subject.model, subject.segmented
    reference = [segmented.output(row) for row in samples.split(2)]
    original = present_values(model)
    for site in linears(subject):
        rounded = quantize(site_weight(model, site), weights, subject.storage_dtype)
        site_layer(model, site).put(rounded.dequantize())
    sites = {site.name: site for site in subject.activations}
    hooks = [hook for name, (fmt, reach) in inputs.items() for hook in round_site(model, sites[name], fmt, reach)]
    with attached(hooks):
        pairs = zip(reference, samples.split(2), strict=True)
        found = [segmented.distortion.between(each, segmented.output(row), row).mean() for each, row in pairs]
    for name, parameter in model.named_parameters():
        parameter.data = original[name]
    return float(torch.stack(found).mean())


def jointly(subject: Subject, curves: dict[str, Curve], other: Samples) -> list[dict[str, float | str]]:
    """Predicted and measured, of each format, with and without rounded inputs."""
    rows = []
    flowing = {name: curve for name, curve in curves.items() if name.endswith(":input")}
    for fmt in FLOAT_WEIGHTS.values():
        own = [curves[site.name] for site in linears(subject)]
        if not all(fmt in curve.formats for curve in own):
            continue
        predicted = sum(cost(curve, fmt) for curve in own)
        rows.append(_row(fmt.name, predicted, judged(subject, other, fmt, {})))
        inputs = FLOAT_ACTIVATIONS.get(PAIRS.get(fmt.name, ""))
        if inputs is None or not all(inputs in curve.formats for curve in flowing.values()):
            continue
        more = sum(cost(curve, inputs) for curve in flowing.values())
        rounded = {name: (inputs, curve.largest[0]) for name, curve in flowing.items()}
        rows.append(_row(f"{fmt.name}/{inputs.name}", predicted + more, judged(subject, other, fmt, rounded)))
    return rows


def _row(name: str, predicted: float, measured: float) -> dict[str, float | str]:
    print(f"{name:26} predicted {predicted:.4f}  measured {measured:.4f}  {measured / predicted:.3f}", flush=True)
    return {"format": name, "predicted": predicted, "measured": measured, "ratio": measured / predicted}


def site_by_site(subject: Subject, samples: Samples, count: int, stages: Stages) -> dict[str, float]:
    """|log2(Fisher / exact)| over sites of all kinds and depths, under every format."""
    curves = swept(subject, samples[torch.arange(len(samples)).repeat_interleave(DRAWS)], 1, False, stages)
    own = linears(subject)
    chosen = [curves[own[place].name] for place in np.linspace(0, len(own) - 1, count).round().astype(int)]
    logs = []
    wanted = [(curve.site, curve.formats) for curve in chosen]
    for site, values in exact_curves(subject.segmented, wanted, samples, subject.storage_dtype):
        log = np.log2(curves[site.name].kl("rtn") / values.mean(0))
        logs.append(np.abs(log))
        print(f"{site.name:40}", " ".join(f"{value:+.2f}" for value in log), flush=True)
    off = np.concatenate(logs)
    return {"sites": count, "median": float(np.median(off)), "p95": float(np.quantile(off, 0.95))}


def main() -> None:
    """One of the two."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--data")
    parser.add_argument("--eval-data")
    parser.add_argument("--tokens", type=int, default=2048, help="to measure on, and to judge on")
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--exact", type=int, default=0, help="so many sites, each by itself")
    options = parser.parse_args()
    stages = Stages(quiet=True)
    config = QuantizeConfig(
        options.model, eps=1.0, data=options.data, eval_data=options.eval_data, tokens=options.tokens,
        eval_tokens=options.tokens, length=options.length,
    )  # fmt: skip
    subject = open_subject(config, stages)
    if options.exact:
        print(json.dumps(site_by_site(subject, given_samples(config, subject, stages), options.exact, stages)))
    else:
        samples, parts = calibration_samples(config, subject, stages), calibration_parts(config, subject)
        curves = swept(subject, samples, parts, True, stages)
        print(json.dumps(jointly(subject, curves, held_out_samples(config, subject, stages))))


if __name__ == "__main__":
    main()
