"""The format landscape: what each format of weights costs at each kind of layer, its bits beside.

    python scripts/format_landscape.py --data valid.txt
    python scripts/format_landscape.py --data valid.txt --write docs/results.md

One sweep measures every site under every format; a cell is the sum over the layers of a kind, as GPTQ leaves it and as
rounding to nearest does. Head and embedding are measured apart, though the model ties them. A format that does not
divide a weight's rows has no cell. `--write` puts the tables between the marks `landscape` of a document.
"""

from __future__ import annotations

import argparse
import re
from collections import defaultdict
from pathlib import Path

from natprec.config import QuantizeConfig
from natprec.formats import CHANNEL, Format, integer
from natprec.formats.presets import FLOAT_WEIGHTS
from natprec.measurement import Curve
from natprec.measurement.measure import shared_out
from natprec.measurement.subject import Subject
from natprec.measurement.sweep import sweep, sweep_batches
from natprec.pipeline.request import open_subject
from natprec.pipeline.samples import calibration_parts, calibration_samples
from natprec.utils.progress import Stages

MARKS = "<!-- landscape -->", "<!-- /landscape -->"

INTEGERS = (
    integer(3, 64), integer(3, 64, False), integer(4, 64), integer(4, 64, False), integer(4, 32), integer(5, 64),
    integer(5, 64, False), integer(6, 64), integer(8, 64), integer(8, CHANNEL),
)  # fmt: skip


def measured(subject: Subject, config: QuantizeConfig, formats: tuple[Format, ...], stages: Stages) -> list[Curve]:
    """Curves of all weights."""
    samples, parts = calibration_samples(config, subject, stages), calibration_parts(config, subject)
    own, fitted = shared_out(samples, parts, subject.segmented.routed, "gptq")
    fits = {
        site.name: tuple(fmt for fmt in formats if config.profile.fits(site.role, fmt, *site.shape))
        for site in subject.sites
    }
    with stages.stage("measure", 2 * sweep_batches(subject.segmented, own)) as advance:
        curves = sweep(
            subject.segmented, subject.sites, fits, own, scale_dtype=subject.storage_dtype, seed=0, rounding="gptq",
            parts=parts, gauges=subject.gauges, advance=advance, fitted=fitted,
        )  # fmt: skip
    return list(curves.values())


def kinds(curves: list[Curve]) -> dict[str, list[Curve]]:
    """Kind of layer → its curves, in the model's order: the last part of a Linear's name, or a role."""
    found: dict[str, list[Curve]] = defaultdict(list)
    for curve in curves:
        linear = curve.site.role == "linear"
        found[curve.site.name.rpartition(".")[2] if linear else curve.site.role].append(curve)
    return dict(found)


def table(found: dict[str, list[Curve]], formats: tuple[Format, ...], rounding: str) -> list[str]:
    """Markdown: a row for each format, narrowest first; KL in thousandths of a nat per token."""
    rows = [["format", "bits per weight", *found]]
    linears = [curve for curves in found.values() for curve in curves if curve.site.role == "linear"]
    for fmt in sorted(formats, key=lambda fmt: stored_bits(fmt, linears)):
        cells = [cell(curves, fmt, rounding) for curves in found.values()]
        if any(cells):
            rows.append([f"`{fmt.name}`", f"{stored_bits(fmt, linears):.3f}", *cells])
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return [lines[0], "|" + "---|" * len(rows[0]), *lines[1:]]


def stored_bits(fmt: Format, curves: list[Curve]) -> float:
    """Of a weight, scales and zero points included."""
    stored = sum(fmt.stored_bytes(*curve.site.shape) for curve in curves if fmt.divides(curve.site.shape[1]))
    weights = sum(curve.site.elements for curve in curves if fmt.divides(curve.site.shape[1]))
    return 8 * stored / weights if weights else 0.0


def cell(curves: list[Curve], fmt: Format, rounding: str) -> str:
    """Sum over the layers of a kind."""
    if not all(fmt in curve.formats for curve in curves):
        return ""
    total = sum(float(curve.kl(rounding)[curve.formats.index(fmt)]) for curve in curves)
    return f"{1000 * total:.3g}"


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--data")
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--sequence-length", type=int, default=256)
    parser.add_argument("--write", type=Path, help="document whose marks hold the tables")
    options = parser.parse_args()
    config = QuantizeConfig(
        options.model, bits=4.0, data=options.data, tokens=options.tokens, length=options.sequence_length, gpu="any",
        untested=True,
    )  # fmt: skip
    stages, formats = Stages(), (*INTEGERS, *FLOAT_WEIGHTS.values())
    subject = open_subject(config, stages)
    found = kinds(measured(subject, config, formats, stages))
    counts = ["weights, millions", ""]
    counts += [f"{sum(curve.site.elements for curve in curves) / 1e6:.1f}" for curves in found.values()]
    lines = []
    for rounding, title in (("gptq", "GPTQ"), ("rtn", "Round to nearest")):
        own = table(found, formats, rounding)
        lines += [f"{title}, KL in 0.001 nats per token:", "", *own[:2], "| " + " | ".join(counts) + " |", *own[2:], ""]
    text = "\n".join(lines).rstrip()
    print(text)
    if options.write:
        document = options.write.read_text(encoding="utf-8")
        pattern = f"{re.escape(MARKS[0])}.*?{re.escape(MARKS[1])}"
        if not re.search(pattern, document, re.DOTALL):
            parser.error(f"{options.write} has no {MARKS[0]} and {MARKS[1]}")
        whole = f"{MARKS[0]}\n{text}\n{MARKS[1]}"
        options.write.write_text(re.sub(pattern, lambda _: whole, document, flags=re.DOTALL), encoding="utf-8")


if __name__ == "__main__":
    main()
