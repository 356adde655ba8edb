"""The flow of `natprec compare`: reference and tokens as files, one process per method, one judge, one table.

DIR/reference/        the model in float32, as every method loads it
DIR/calibration.safetensors
DIR/text.safetensors  more of the text, if a method is given some
DIR/METHOD-BITS/      job.json, log.txt, checkpoint/, row.json; with a number behind it of each further seed
DIR/compare.json      what `--json` prints
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from natprec.comparison.bench import CALIBRATION, Bench, Settings, line, planned_for
from natprec.comparison.judging import UNROUNDED
from natprec.comparison.methods import LEARN_TOKENS, METHODS, SIZED_BY
from natprec.comparison.modules import compare_modules
from natprec.comparison.proxies import correlations
from natprec.comparison.ratios import ratios
from natprec.config import QuantizeConfig
from natprec.data.seen import pieces_of
from natprec.errors import InputError, OutputError
from natprec.formats import integer
from natprec.measurement.subject import Subject
from natprec.models.weight_sites import refuse_indivisible
from natprec.pipeline.early import inputs
from natprec.pipeline.request import open_subject, refuse_without_text
from natprec.pipeline.samples import given_samples, held_out_samples, unmeasured_samples
from natprec.utils.atomic_files import write_json
from natprec.utils.marks import is_ours, refuse_inputs
from natprec.utils.progress import Stages
from natprec.utils.records import OWN_TEXT, public_name


def compare(
    config: QuantizeConfig, settings: Settings, folder: Path, stages: Stages, resume: bool = False
) -> dict[str, Any]:
    """Run every method at every width and judge it.

    Args:
        folder: for results; written as the run goes on.
        resume: take rows that succeeded with the same inputs from an earlier run.
    Returns:
        `rows`, `ratios`, `proxies`, `target_bytes` and what the rows were measured with; plain values.
    Raises:
        NatprecError: the model, the text or the group size cannot be used. A method's failure is its status.
    """
    refuse_inputs(folder, inputs(config))
    refuse_occupied(folder, resume)
    if settings.modules:
        return compare_modules(config, settings, folder, stages, resume)
    if not isinstance(config.group_size, int) or config.group_size < 1:
        raise InputError("group size: the methods share only groups of a fixed size; give --group-size 32, 64 or 128")
    subject = open_subject(config, stages)
    refuse_without_text(subject, "compare")
    sites = [site for site in subject.sites if site.role == "linear"]
    refuse_indivisible(sites, (integer(4, config.group_size, True),))
    samples = given_samples(config, subject, stages)
    more = None
    if any(METHODS[name].more for name in settings.methods):
        more = unmeasured_samples(config, subject, stages, LEARN_TOKENS // config.length, pieces_of(samples))
    seen = pieces_of(samples) if more is None else np.union1d(pieces_of(samples), pieces_of(more))
    held_out = held_out_samples(config, subject, stages, seen)
    bench = Bench(config, settings, folder, stages, subject, samples, held_out, more)
    bench.write_inputs()
    rows: list[dict[str, Any]] = []
    targets: dict[int, int] = {}
    for bits in settings.widths:
        for name in settings.methods:
            if METHODS[name].bits is not None and bits != settings.widths[0]:
                continue  # its only width has its row already
            if METHODS[name].sized and bits not in targets:
                # beside rounded activations llm-compressor stores every code in a byte
                packed = rows if settings.activations == UNROUNDED else []
                targets[bits] = target_bytes(packed, bits, subject, config.group_size)
            for number in range(settings.seeds if METHODS[name].own else 1):
                row = bench.row(name, METHODS[name].bits or bits, targets.get(bits), resume, number)
                rows.append(row)
                stages.note(f"{name} {row['bits']}: {line(row)}")
    report = {
        "model": subject.name,
        "model_digest": subject.digest,
        "distortion": f"{subject.distortion.label} to the original, {subject.distortion.unit}",
        "data": public_name(config.data or OWN_TEXT),
        "data_digest": samples.digest,
        "eval_data": public_name(config.eval_data or config.data or OWN_TEXT),
        "eval_data_digest": held_out.digest,
        "tokens": bench.samples.tokens,
        "more_tokens": 0 if more is None else more.tokens,
        "eval_tokens": bench.held_out.tokens,
        "group_size": config.group_size,
        "activations": settings.activations,
        "gpu": planned_for(config, settings),
        "target_bytes": targets,
        "rows": rows,
        "ratios": ratios(rows, settings.widths, config.seed),
        "proxies": correlations(rows, config.seed),
    }
    write_json(folder / "compare.json", report)
    return report


def refuse_occupied(folder: Path, resume: bool) -> None:
    """Hours of results are not written over.

    Raises:
        OutputError: the folder has files and is not to be resumed, or they are of something else.
    """
    if not folder.exists():
        return
    if not folder.is_dir():
        raise OutputError(f"output {str(folder)!r} is a file; choose a folder")
    if any(folder.iterdir()) and not (resume and is_ours(folder / CALIBRATION)):
        remedy = "choose another" if resume else "add --resume to go on with it, or choose another"
        raise OutputError(f"output {str(folder)!r} is not empty; {remedy}")


def target_bytes(rows: list[dict[str, Any]], bits: int, subject: Subject, group_size: int) -> int:
    """Bytes of the weight files of the uniform checkpoint, by count where no peer wrote one."""
    for name in SIZED_BY:
        for row in rows:
            if row["method"] == name and row["bits"] == bits and row["status"] == "ok":
                return int(row["stored_bytes"])
    linear = [site for site in subject.sites if site.role == "linear"]
    counted = sum(site.elements * (bits + (16 + bits) / group_size) / 8 for site in linear)
    others = sum(2 * site.elements for site in subject.sites if site.role != "linear")
    return int(counted + others + subject.other_bytes)
