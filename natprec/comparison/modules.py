"""`natprec compare` of models that read no text: parts of pipelines, image models, speech.

The others need no data and choose their own sizes, so that natprec is run at the bytes of each of them in turn, from
one measurement. What they leave at 16 bits by rule, embeddings, natprec leaves so too.

DIR/calibration.safetensors  the samples that natprec measures on
DIR/measured/                its measurement, on which --resume goes on
DIR/METHOD-BITS/             job.json, log.txt, row.json
DIR/natprec-BYTES/           checkpoint/ of so many, row.json
DIR/compare.json             what `--json` prints
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.torch import save_file
from torch import nn

from natprec.comparison.bench import CALIBRATION, FIGURES, Settings, Shared, kept, line, without_files
from natprec.comparison.candidates import linears_only
from natprec.comparison.judging import UNROUNDED, judge, judged_model
from natprec.comparison.methods import MODULES, OWN, Method
from natprec.comparison.peers.worker import Job
from natprec.comparison.processes import interpreter, run_job
from natprec.config import QuantizeConfig
from natprec.data.seen import pieces_of
from natprec.errors import InputError, NatprecError
from natprec.evaluation.trajectories import compare_trajectories
from natprec.evaluation.verify import opened
from natprec.measurement import Measurement
from natprec.models.places import local_path
from natprec.pipeline.components import pipeline_of, settled
from natprec.pipeline.early import refuse_early
from natprec.pipeline.request import open_subject, solve_for
from natprec.pipeline.resume import measured
from natprec.pipeline.rounded import round_and_write
from natprec.pipeline.samples import calibration_samples, held_out_samples
from natprec.tasks.diffusion import PipelinePart
from natprec.utils.atomic_files import new_folder, write_json
from natprec.utils.marks import KEY
from natprec.utils.progress import Stages
from natprec.utils.records import public_name, without_places
from natprec.utils.statistics import bootstrap_ratio

IMAGES = 16
"""Made by a pipeline with each part, from equal seeds."""

MORE = ("image_error", "kl_predicted", "beside", "stored_bits")
"""Of each row beside `FIGURES`: the mean squared difference of images in [0, 1], what natprec predicts, whose bytes it
has, and bits of each number of the layers that natprec measures."""


def compare_modules(
    config: QuantizeConfig, settings: Settings, folder: Path, stages: Stages, resume: bool
) -> dict[str, Any]:
    """Run every method at every width and natprec at the bytes of each, and judge all of them.

    Args:
        folder: for results, empty or of an earlier run.
    Returns:
        `rows`, each of natprec's behind the one that it is beside, `ratios`, and what they were measured with.
    Raises:
        InputError: an option that is for models of text, or the model is one.
    """
    if settings.activations < UNROUNDED or settings.seeds > 1:
        raise InputError("--activations and --seeds are for models of text; leave them out")
    config = settled(config) if pipeline_of(config) else replace(config, engine="natprec")
    refuse_early(config)
    subject = open_subject(config, stages)
    if subject.task.material == "text":
        raise InputError(f"{subject.name!r} is {subject.task.noun} and reads text; give a file of it with --data")
    samples = calibration_samples(config, subject, stages)
    held_out = held_out_samples(config, subject, stages, pieces_of(samples))
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: each.contiguous() for name, each in samples.tensors.items()}
    save_file(tensors, folder / CALIBRATION, {KEY: "calibration samples of natprec compare"})
    place = folder / "measured" / "measurement.safetensors"
    place.parent.mkdir(exist_ok=True)
    found = linears_only(measured(config, subject, samples, place, resume, stages))
    bench = _Bench(config, settings, folder, stages, subject, samples, held_out, found)
    rows, ratios = [], []
    for bits in settings.widths:
        for name in settings.methods:
            method = MODULES[name]
            if method.own or (method.bits is not None and bits != settings.widths[0]):
                continue  # its only width has its row already
            theirs = bench.peer(name, method, method.bits or bits, resume)
            rows.append(theirs)
            if OWN not in settings.methods or theirs["status"] != "ok":
                continue
            ours = bench.own(theirs, resume)
            rows.append(ours)
            if ours["status"] == "ok":
                ratios.append(_ratio(ours, theirs, config.seed))
    report = {
        "model": subject.name,
        "model_digest": subject.digest,
        "distortion": subject.distortion.label,
        "data": public_name(config.source or "the pipeline itself"),
        "data_digest": samples.digest,
        "eval_data": public_name(config.eval_data or config.source or "the pipeline itself"),
        "eval_data_digest": held_out.digest,
        "tokens": samples.tokens,
        "eval_tokens": held_out.tokens,
        "images": IMAGES if isinstance(subject.task, PipelinePart) else 0,
        "rows": rows,
        "ratios": ratios,
        "proxies": {},
    }
    write_json(folder / "compare.json", report)
    return report


def _ratio(ours: dict[str, Any], theirs: dict[str, Any], seed: int) -> dict[str, Any]:
    above, below = np.array(ours["kl_samples"]), np.array(theirs["kl_samples"])
    return {
        "method": OWN, "bits": theirs["bits"], "peer": theirs["method"], "ratio": float(above.mean() / below.mean()),
        "ci95": list(bootstrap_ratio(above, below, seed)), "seeds": 1,
    }  # fmt: skip


@dataclass(frozen=True)
class _Bench(Shared):
    """What all rows share.

    Attributes:
        found: what natprec measured, with the candidates that others have.
        made: folders of natprec that this run has made: two methods may have the same bytes.
    """

    found: Measurement
    made: set[Path] = field(default_factory=set)

    @property
    def elements(self) -> int:
        """Numbers of the layers that natprec measures."""
        return sum(curve.site.elements for curve in self.found.weights.values() if curve.formats)

    @property
    def beside(self) -> int:
        """Bytes of all other parameters, at 16 bits."""
        return 2 * (sum(each.numel() for each in self.subject.model.parameters()) - self.elements)

    def peer(self, name: str, method: Method, bits: int, resume: bool) -> dict[str, Any]:
        """One method at one width, in a process of its own."""
        folder = (self.folder / f"{name}-{bits}").absolute()
        job = self._job(name, method, bits, folder)
        key = self.key(without_files(job))
        row = kept(folder / "row.json", key) if resume else None
        if row is not None:
            return row
        chosen = interpreter(name, method, self.settings.interpreters or {})
        row = _empty(name, bits, self.config.seed)
        with self.stages.stage(f"{name} {bits}"):
            row.update(run_job(job, method, folder, chosen, self.settings.time_limit))
            if row["status"] == "ok":
                try:
                    row.update(self._judged(judged_model(self.subject, folder / "dense.safetensors")))
                except NatprecError as error:
                    row["status"] = without_places(str(error))
        if row["status"] == "ok":
            row["stored_bits"] = 8 * (row["stored_bytes"] - self.beside) / self.elements
            write_json(folder / "row.json", {"key": key, "row": row})
        (folder / "dense.safetensors").unlink(missing_ok=True)
        self.stages.note(f"{name} {bits}: {line(row, 'D')}")
        return row

    def own(self, theirs: dict[str, Any], resume: bool) -> dict[str, Any]:
        """Natprec at the bytes of another row: solved, rounded, written and read back."""
        about = f"{theirs['method']} {theirs['bits']}"
        placed = {"beside": about, "bits": theirs["bits"]}
        folder = self.folder / f"{OWN}-{theirs['stored_bytes']}"
        key = self.key(theirs["stored_bytes"])
        row = kept(folder / "row.json", key) if resume or folder in self.made else None
        if row is not None:
            return row | placed
        self.made.add(folder)
        row = _empty(OWN, theirs["bits"], self.config.seed) | placed
        begun = time.perf_counter()
        with self.stages.stage(f"{OWN} beside {about}"):
            try:
                row.update(self._rounded(theirs["stored_bits"], folder / "checkpoint"))
            except NatprecError as error:
                row["status"] = without_places(str(error))
        row["seconds"] = sum(self.found.header.seconds.values()) + time.perf_counter() - begun
        if row["status"] == "ok":
            write_json(folder / "row.json", {"key": key, "row": row})
        self.stages.note(f"{OWN} beside {about}: {line(row, 'D')}")
        return row

    def _rounded(self, bits: float, out: Path) -> dict[str, Any]:
        subject, quiet = self.subject, Stages(quiet=True)
        plan = solve_for(replace(self.config, bits=bits), self.found)
        with new_folder(out, overwrite=True) as folder:
            round_and_write(subject, plan, self.samples, self.config.rounding, folder, None, quiet)
        device = next(subject.model.parameters()).device
        network = opened(out, subject, device, plan.engine).model
        stored = sum(choice.stored_bytes for name, choice in plan.sites.items() if self.found.curves[name].formats)
        return {
            "status": "ok", "stored_bytes": stored + self.beside, "bits_per_weight": plan.bits_per_weight,
            "stored_bits": 8 * stored / self.elements, "kl_predicted": plan.kl_predicted, **self._judged(network),
        }  # fmt: skip

    def _judged(self, network: nn.Module) -> dict[str, Any]:
        figures = judge(self.subject, network, self.held_out, self.config.seed)
        part = self.subject.task
        if isinstance(part, PipelinePart):
            _, images = compare_trajectories(part, network, self.subject.distortion, self.config.seed, IMAGES)
            if images is not None:
                figures["image_error"] = float((images[0].double() - images[1].double()).square().mean())
        return figures

    def _job(self, name: str, method: Method, bits: int, folder: Path) -> Job:
        model = self.subject.model
        place = local_path(self.config.model)
        assert place is not None
        of_part = place / self.config.component if self.config.component else place
        return Job(
            method=name, model=os.path.relpath(of_part, folder), calibration="", bits=bits, group_size=0,
            storage_dtype=str(self.subject.storage_dtype).removeprefix("torch."), max_bytes=None,
            settings={
                **method.settings, "library": type(model).__module__, "class": type(model).__name__,
                "elements": sum(each.numel() for each in model.parameters()),
            },
            trust_remote_code=self.config.trust_remote_code, kind="module", seed=self.config.seed,
        )  # fmt: skip


def _empty(name: str, bits: int, seed: int) -> dict[str, Any]:
    return {"method": name, "bits": bits, "seed": seed, "status": "", **dict.fromkeys((*FIGURES, *MORE))}
