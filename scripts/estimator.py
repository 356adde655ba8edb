"""The estimator: the Fisher sweep against the exact KL, over sites of all kinds and depths.

    python scripts/estimator.py --data valid.txt --sites 24

Prints |log2(Fisher / exact)| per site and width, its median and its 95th percentile.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np

from natprec.measurement import Measurement
from natprec.measurement.exact import exact_curves
from natprec.measurement.measure import measure
from natprec.measurement.sweep import batches
from natprec.progress import Stages
from natprec.request import Request, open_subject
from natprec.texts import calibration_tokens


def main() -> None:
    """Compare the two estimators on the same text."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--data")
    parser.add_argument("--tokens", type=int, default=8192)
    parser.add_argument("--exact-sequences", type=int, default=8)
    parser.add_argument("--sites", type=int, default=24)
    parser.add_argument("--measurement", type=Path, help="use this file instead of measuring")
    options = parser.parse_args()
    stages = Stages()
    request = Request(options.model, eps=1.0, data=options.data, tokens=options.tokens)
    subject = open_subject(request, stages)
    ids = calibration_tokens(request, subject, stages)
    measurement = Measurement.load(options.measurement) if options.measurement else measure(subject, ids, stages=stages)
    curves = list(measurement.curves.values())
    # a stride that is prime to the sites of a block meets every kind at every depth
    chosen = [curves[i] for i in np.linspace(0, len(curves) - 1, options.sites).round().astype(int)]
    first = ids[: len(ids) // measurement.header.parts]
    few = first[:: max(1, len(first) // options.exact_sequences)][: options.exact_sequences]
    wanted = [(curve.site, curve.formats) for curve in chosen]
    steps = sum(len(curve.formats) for curve in chosen) * len(batches(*few.shape))
    logs = []
    with stages.stage("exact", steps) as advance:
        for site, values in exact_curves(subject.staged, wanted, few, subject.storage_dtype, advance):
            fisher = measurement.curves[site.name].forward[0].mean(0)
            log = np.log2(fisher / values.mean(0))
            logs.append(log)
            print(f"{site.name:40}", " ".join(f"{value:+.2f}" for value in log), flush=True)
    off = np.abs(np.stack(logs))
    print("by width, median ", " ".join(f"{value:.2f}" for value in np.median(off, 0)))
    result = {
        "sites": len(logs),
        "formats": [fmt.name for fmt in chosen[0].formats],
        "median": float(np.median(off)),
        "p95": float(np.quantile(off, 0.95)),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
