"""The estimator: the Fisher sweep against the exact KL (or another distortion), over sites of all kinds and depths.

    python scripts/estimator.py --data valid.txt --sites 24

Both see the same sequences; the sweep sees each several times, with other random signs.
Prints |log2(Fisher / exact)| per site and width, its median and its 95th percentile.
"""

from __future__ import annotations

import argparse
import json

import numpy as np
import torch

from natprec.config import QuantizeConfig
from natprec.measurement.exact import exact_curves
from natprec.measurement.measure import DIFFERENTIATED, measure
from natprec.pipeline.request import open_subject
from natprec.pipeline.samples import calibration_samples
from natprec.utils.progress import Stages


def main() -> None:
    """Compare the two estimators on the same text."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--data")
    parser.add_argument("--tokens", type=int, default=8192)
    parser.add_argument("--sequence-length", type=int, default=256)
    parser.add_argument("--exact-sequences", type=int, default=8)
    parser.add_argument("--sites", type=int, default=24)
    parser.add_argument("--activations", action="store_true", help="inputs of Linears, stream, keys and values instead")
    options = parser.parse_args()
    stages = Stages()
    request = QuantizeConfig(
        options.model, eps=1.0, data=options.data, tokens=options.tokens, length=options.sequence_length
    )
    subject = open_subject(request, stages)
    some = calibration_samples(request, subject, stages)
    few = some[:: max(1, len(some) // options.exact_sequences)][: options.exact_sequences]
    # both estimators see one text; the sweep with other signs each time, of every second sequence
    samples = few[torch.arange(len(few)).repeat_interleave(DIFFERENTIATED * (len(some) // len(few)))]
    kind = "all" if options.activations else "weights"
    measurement = measure(subject, samples, rounding="rtn", sites=kind, stages=stages)
    curves = [
        curve
        for curve in measurement.curves.values()
        if curve.energy.any() and (curve.site.kind == "weight") != options.activations
    ]
    # a stride that is prime to the sites of a block meets every kind at every depth
    chosen = [curves[i] for i in np.linspace(0, len(curves) - 1, options.sites).round().astype(int)]
    wanted = [(curve.site, curve.formats) for curve in chosen]
    steps = sum(len(curve.formats) for curve in chosen) * len(few.batches())
    logs = []
    with stages.stage("exact", steps) as advance:
        for site, values in exact_curves(subject.segmented, wanted, few, subject.storage_dtype, advance):
            log = np.log2(measurement.curves[site.name].kl() / values.mean(0))
            logs.append(log)
            print(f"{site.name:40}", " ".join(f"{value:+.2f}" for value in log), flush=True)
    off = np.abs(np.concatenate(logs))
    names = [fmt.name for curve in chosen for fmt in curve.formats]
    by_format = {name: float(np.median(off[[each == name for each in names]])) for name in dict.fromkeys(names)}
    print("by format, median ", " ".join(f"{name} {value:.2f}" for name, value in by_format.items()))
    result = {
        "sites": len(logs),
        "by_format": by_format,
        "median": float(np.median(off)),
        "p95": float(np.quantile(off, 0.95)),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
