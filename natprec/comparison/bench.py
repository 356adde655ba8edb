"""What the rows of a comparison share, and how one of them is made: run, judge, keep."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import nn

from natprec.comparison.judging import UNROUNDED, judge, judged_model, rounded_inputs, sizes, stored_model
from natprec.comparison.methods import METHODS, Method
from natprec.comparison.peers.worker import Job
from natprec.comparison.processes import interpreter, run_job
from natprec.comparison.proxies import NAMES, proxies
from natprec.config import QuantizeConfig
from natprec.errors import InputError, ModelError
from natprec.formats.gpus import ANY
from natprec.measurement.subject import Subject
from natprec.models.devices import quiet
from natprec.tasks import Samples
from natprec.utils.atomic_files import write_json
from natprec.utils.human import human_seconds
from natprec.utils.json_text import from_json
from natprec.utils.marks import KEY
from natprec.utils.progress import Stages
from natprec.utils.records import without_places

FIGURES = (
    "kl_mean", "kl_ci95", "kl_samples", "kl_p99", "perplexity", "top1_agreement", "stored_bytes", "bits_per_weight",
    "seconds", "peak_bytes", *NAMES,
)  # fmt: skip
"""Of each row beside `method`, `bits`, `seed` and `status`; None where the method failed. `kl_samples` has the mean of
each sample that judges."""


REFERENCE, CALIBRATION, TEXT = "reference", "calibration.safetensors", "text.safetensors"
"""Names in the folder of a comparison."""


@dataclass(frozen=True)
class Settings:
    """The options of a comparison beyond model and texts.

    Attributes:
        methods: names in `METHODS`, natprec's last; with `modules` in `MODULES`, for a model that reads no text.
        widths: bits of the uniform methods; one group of rows for each.
        iterations: steps per block of AutoRound.
        interpreters: method, or '' for all peers → Python interpreter.
        time_limit: seconds that one method may take.
        seeds: how often each method of natprec runs, each time with another seed.
        activations: bits of the inputs of Linears in all rows: 16, 8 or 4; by token, but for natprec's as it planned,
            and for those that are judged as stored.
    """

    methods: list[str]
    widths: list[int]
    iterations: int = 200
    interpreters: dict[str, str] | None = None
    time_limit: float = 21600.0
    activations: int = UNROUNDED
    seeds: int = 1
    modules: bool = False


def planned_for(config: QuantizeConfig, settings: Settings) -> str | None:
    """The GPU of natprec's rows for vLLM: 'any', unless one is named; none beside rounded integers, which no format of
    'any' is multiplied with.
    """
    return config.gpu or (ANY if settings.activations == UNROUNDED else None)


@dataclass(frozen=True)
class Shared:
    """What all rows share, of models of text and of others."""

    config: QuantizeConfig
    settings: Settings
    folder: Path
    stages: Stages
    subject: Subject
    samples: Samples
    held_out: Samples

    def key(self, about: Any) -> str:
        """Of a row, 16 hex digits; `about` is what it depends on beside model, samples and seed, plain values."""
        parts = [self.subject.digest, self.samples.digest, self.held_out.digest, self.config.seed, about]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Bench(Shared):
    """Of models of text."""

    more: Samples | None = None

    def write_inputs(self) -> None:
        """The reference and the tokens, as every worker reads them."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with self.stages.stage("write reference"), quiet():
            model: Any = self.subject.model
            model.save_pretrained(self.folder / REFERENCE)
            self.subject.tokenizer.save_pretrained(self.folder / REFERENCE)
            marked = {KEY: "calibration tokens of natprec compare"}
            for samples, file in ((self.samples, CALIBRATION), (self.more, TEXT)):
                if samples is not None:
                    tensors = {name: each.contiguous() for name, each in samples.tensors.items()}
                    save_file(tensors, self.folder / file, marked)

    def row(self, name: str, bits: int, target: int | None, resume: bool, number: int = 0) -> dict[str, Any]:
        """One method at one width: run, judge, keep.

        Args:
            number: of the run; each has a seed of its own.
        """
        method = METHODS[name]
        folder = (self.folder / (f"{name}-{bits}-{number}" if number else f"{name}-{bits}")).absolute()
        job = self._job(name, method, bits, target, number)
        key = self._job_key(job)
        known = kept(folder / "row.json", key) if resume else None
        if known is not None:
            return known
        chosen = interpreter(name, method, self.settings.interpreters or {})
        row = {"method": name, "bits": bits, "seed": job.seed, "status": "", **dict.fromkeys(FIGURES)}
        with self.stages.stage(f"{name} {bits}"):
            row.update(run_job(job, method, folder, chosen, self.settings.time_limit))
            if row["status"] == "ok":
                row.update(self._judged(row, folder, method))
        if row["status"] == "ok":
            write_json(folder / "row.json", {"key": key, "row": row})
        (folder / "dense.safetensors").unlink(missing_ok=True)  # as large as the model in float32
        return row

    def _judged(self, row: dict[str, Any], folder: Path, method: Method) -> dict[str, Any]:
        """All figures; if the method's weights are of no use, a status that says so."""
        try:
            if method.stored:
                model: nn.Module = stored_model(self.subject, folder / "checkpoint", self.config.gpu)
            else:
                model = judged_model(self.subject, folder / "dense.safetensors")
            plan = folder / "checkpoint" / "plan.json" if method.own else None
            activations = UNROUNDED if method.stored else self.settings.activations
            inputs = rounded_inputs(self.subject, activations, plan)
            figures = judge(self.subject, model, self.held_out, self.config.seed, inputs)
            size = {} if row["stored_bytes"] else sizes(folder / "checkpoint", self.subject.model)
        except (ModelError, InputError) as error:
            return {"status": without_places(str(error))}
        return {**size, **figures, **proxies(self.subject, model, self.samples, method.rescales)}

    def _job(self, name: str, method: Method, bits: int, target: int | None, number: int) -> Job:
        settings = {
            **method.settings,
            **({"iterations": self.settings.iterations} if method.peer == "autoround" else {}),
            **({"gpu": planned_for(self.config, self.settings)} if method.settings.get("engine") == "vllm" else {}),
        }
        assert isinstance(self.config.group_size, int)
        return Job(
            method=name,
            model=str(Path("..") / REFERENCE),
            calibration=str(Path("..") / CALIBRATION),
            bits=bits,
            group_size=self.config.group_size,
            storage_dtype=str(self.subject.storage_dtype).removeprefix("torch."),
            max_bytes=target if method.sized else None,
            settings=settings,
            trust_remote_code=self.config.trust_remote_code,
            kind=self.subject.task.name,
            activations=self.settings.activations,
            seed=self.config.seed + number,
            more=str(Path("..") / TEXT) if method.more else None,
        )

    def _job_key(self, job: Job) -> str:
        """Everything that a row depends on, except the versions of the peers."""
        parts: list[Any] = [without_files(job)]
        if job.more is not None and self.more is not None:
            parts.append(self.more.digest)
        if METHODS[job.method].stored:
            parts.append(f"as stored, on {self.config.gpu}")
        elif job.activations < UNROUNDED:
            parts.append("activations rounded as planned" if METHODS[job.method].own else "by token")
        return self.key(parts)


def without_files(job: Job) -> dict[str, Any]:
    """A job without the places that it names."""
    return {name: value for name, value in asdict(job).items() if name not in ("model", "calibration", "more")}


def kept(file: Path, key: str) -> dict[str, Any] | None:
    """The row of an earlier run with the same inputs."""
    try:
        value = from_json(file.read_text())
    except (OSError, ValueError):
        return None
    return value["row"] if value.get("key") == key else None


def line(row: dict[str, Any], label: str = "KL") -> str:
    """What became of a row."""
    if row["status"] != "ok":
        return str(row["status"])
    return f"{label} {row['kl_mean']:.4g}, {row['stored_bytes'] / 1e6:.1f} MB, {human_seconds(row['seconds'])}"
