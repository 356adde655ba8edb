"""The flow of `natprec compare`: reference and tokens as files, one process per method, one judge, one table.

DIR/reference/        the model in float32, as every method loads it
DIR/calibration.safetensors
DIR/METHOD-BITS/      job.json, log.txt, checkpoint/, row.json
DIR/compare.json      what `--json` prints
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import nn

from natprec.comparison.judging import UNROUNDED, judge, judged_model, rounded_inputs, sizes, stored_model
from natprec.comparison.methods import METHODS, SIZED_BY, Method
from natprec.comparison.peers.worker import Job
from natprec.comparison.processes import interpreter, run_job
from natprec.comparison.proxies import NAMES, correlations, proxies
from natprec.config import QuantizeConfig
from natprec.data.seen import pieces_of
from natprec.errors import InputError, ModelError, OutputError
from natprec.formats import integer
from natprec.formats.gpus import ANY
from natprec.measurement.subject import Subject
from natprec.models.devices import quiet
from natprec.models.weight_sites import refuse_indivisible
from natprec.pipeline.early import inputs
from natprec.pipeline.request import open_subject, refuse_images
from natprec.pipeline.samples import given_samples, held_out_samples
from natprec.tasks import Samples
from natprec.utils.atomic_files import write_json
from natprec.utils.human import human_seconds
from natprec.utils.marks import KEY, is_ours, refuse_inputs
from natprec.utils.progress import Stages
from natprec.utils.records import OWN_TEXT, public_name, without_places

FIGURES = (
    "kl_mean", "kl_ci95", "kl_p99", "perplexity", "top1_agreement", "stored_bytes", "bits_per_weight", "seconds",
    "peak_bytes", *NAMES,
)  # fmt: skip
"""Of each row beside `method`, `bits` and `status`; None where the method failed."""


REFERENCE, CALIBRATION = "reference", "calibration.safetensors"
"""Names in the folder of a comparison."""


@dataclass(frozen=True)
class Settings:
    """The options of a comparison beyond model and texts.

    Attributes:
        methods: names in `METHODS`, natprec's last.
        widths: bits of the uniform methods; one group of rows for each.
        iterations: steps per block of AutoRound.
        interpreters: method, or '' for all peers → Python interpreter.
        time_limit: seconds that one method may take.
        activations: bits of the inputs of Linears in all rows: 16, 8 or 4; by token, but for natprec's as it planned,
            and for those that are judged as stored.
    """

    methods: list[str]
    widths: list[int]
    iterations: int = 200
    interpreters: dict[str, str] | None = None
    time_limit: float = 21600.0
    activations: int = UNROUNDED


def compare(
    config: QuantizeConfig, settings: Settings, folder: Path, stages: Stages, resume: bool = False
) -> dict[str, Any]:
    """Run every method at every width and judge it.

    Args:
        folder: for results; written as the run goes on.
        resume: take rows that succeeded with the same inputs from an earlier run.
    Returns:
        `rows`, `proxies`, `target_bytes` and what the rows were measured with; plain values.
    Raises:
        NatprecError: the model, the text or the group size cannot be used. A method's failure is its status.
    """
    if not isinstance(config.group_size, int) or config.group_size < 1:
        raise InputError("group size: the methods share only groups of a fixed size; give --group-size 32, 64 or 128")
    refuse_inputs(folder, inputs(config))
    refuse_occupied(folder, resume)
    subject = open_subject(config, stages)
    refuse_images(subject, "compare")
    sites = [site for site in subject.sites if site.role == "linear"]
    refuse_indivisible(sites, (integer(4, config.group_size, True),))
    samples = given_samples(config, subject, stages)
    held_out = held_out_samples(config, subject, stages, pieces_of(samples))
    bench = _Bench(config, settings, folder, stages, subject, samples, held_out)
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
            row = bench.row(name, METHODS[name].bits or bits, targets.get(bits), resume)
            rows.append(row)
            stages.note(f"{name} {row['bits']}: {_line(row)}")
    report = {
        "model": subject.name,
        "model_digest": subject.digest,
        "data": public_name(config.data or OWN_TEXT),
        "data_digest": samples.digest,
        "eval_data": public_name(config.eval_data or config.data or OWN_TEXT),
        "eval_data_digest": held_out.digest,
        "tokens": bench.samples.tokens,
        "eval_tokens": bench.held_out.tokens,
        "group_size": config.group_size,
        "activations": settings.activations,
        "gpu": planned_for(config, settings),
        "target_bytes": targets,
        "rows": rows,
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


def planned_for(config: QuantizeConfig, settings: Settings) -> str | None:
    """The GPU of natprec's rows for vLLM: 'any', unless one is named; none beside rounded integers, which no format of
    'any' is multiplied with.
    """
    return config.gpu or (ANY if settings.activations == UNROUNDED else None)


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


@dataclass(frozen=True)
class _Bench:
    """What all rows share."""

    config: QuantizeConfig
    settings: Settings
    folder: Path
    stages: Stages
    subject: Subject
    samples: Samples
    held_out: Samples

    def write_inputs(self) -> None:
        """The reference and the calibration tokens, as every worker reads them."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with self.stages.stage("write reference"), quiet():
            model: Any = self.subject.model
            model.save_pretrained(self.folder / REFERENCE)
            self.subject.tokenizer.save_pretrained(self.folder / REFERENCE)
            marked = {KEY: "calibration tokens of natprec compare"}
            save_file(
                {name: each.contiguous() for name, each in self.samples.tensors.items()},
                self.folder / CALIBRATION,
                marked,
            )

    def row(self, name: str, bits: int, target: int | None, resume: bool) -> dict[str, Any]:
        """One method at one width: run, judge, keep."""
        method = METHODS[name]
        folder = (self.folder / f"{name}-{bits}").absolute()
        job = self._job(name, method, bits, target)
        key = self._key(job)
        kept = _kept(folder / "row.json", key) if resume else None
        if kept is not None:
            return kept
        chosen = interpreter(name, method, self.settings.interpreters or {})
        row = {"method": name, "bits": bits, "status": "", **dict.fromkeys(FIGURES)}
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

    def _job(self, name: str, method: Method, bits: int, target: int | None) -> Job:
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
        )

    def _key(self, job: Job) -> str:
        """Everything that a row depends on, except the versions of the peers."""
        inputs = {name: value for name, value in asdict(job).items() if name not in ("peer", "model", "calibration")}
        parts = [self.subject.digest, self.samples.digest, self.held_out.digest, inputs, self.config.seed]
        if METHODS[job.method].stored:
            parts.append(f"as stored, on {self.config.gpu}")
        elif job.activations < UNROUNDED:
            parts.append("activations rounded as planned" if METHODS[job.method].own else "by token")
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def _kept(file: Path, key: str) -> dict[str, Any] | None:
    """The row of an earlier run with the same inputs."""
    try:
        value = json.loads(file.read_text())
    except (OSError, ValueError):
        return None
    return value["row"] if value.get("key") == key else None


def _line(row: dict[str, Any]) -> str:
    if row["status"] != "ok":
        return str(row["status"])
    return f"KL {row['kl_mean']:.4g}, {row['stored_bytes'] / 1e6:.1f} MB, {human_seconds(row['seconds'])}"
