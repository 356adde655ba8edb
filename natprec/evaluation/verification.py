"""T6: the promise is checked on text that played no part in measuring.

Both models run in float32, so that the figure is the quantization's and not bfloat16 arithmetic's.
The quantized model is the file on disk, loaded by plain transformers where the engine allows it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from safetensors.numpy import load, save
from torch import Tensor

from natprec.config import CONFIDENCE
from natprec.distortions import Distortion, OutputKL, impossible, task_named
from natprec.errors import InputError
from natprec.evaluation.verdict import FAIL, VERDICTS, FirstVerdict, JudgedText, verdict_of
from natprec.formats.gpus import generation
from natprec.tasks import CAUSAL, Metric, Samples
from natprec.utils.atomic_files import write_json
from natprec.utils.human import human_bytes, summary_html, summary_line
from natprec.utils.matmul import products_in
from natprec.utils.own_files import VERIFICATION, read_json, sealed
from natprec.utils.provenance import Provenance
from natprec.utils.schema import Above0, Among, Count, From0, Named, Positive, Within, read
from natprec.utils.statistics import bootstrap_interval
from natprec.utils.workers import Workers

VERSION = 2
"""Of verification.json: 2 since there are three verdicts; 1 had a checksum; without `version` it is of version 0."""

Output = Callable[[Samples], Tensor]
"""A batch → (batch, terms, size): what the distortion compares, logits of the next token by default."""


@dataclass(frozen=True)
class Verification:
    """The promise and the measured figures, as verification.json holds them.

    Attributes:
        kl_mean: the measured distortion, with `kl_ci95`, its bootstrap interval over sequences at `confidence`: KL in
            nats per token, unless `distortion` names another, whose unit all `kl_` fields and `eps` then have.
        kl_p99: 99th percentile over its terms: tokens, or sequences.
        kl_predicted: None where no plan is known: the checkpoint is another quantizer's.
        passed: `kl_mean` <= the promise; None when a size, and no tolerance, was asked for.
        bits_per_weight: stored, scales included, over the quantized weights; `_total` with those
            that the engine keeps at 16 bits.
        perplexity_reference, perplexity_quantized, top1_agreement: None where the model predicts no next token.
        data: the text that all figures are of: of several `texts` the one where the upper end of the interval is
            highest, so that the verdict holds on each of them; `data_digest`: of its token ids, `tokens` in sequences
            of `length`.
        part: of the held-out text, which of its two parts judged: 0, or after a correction 1.
        corrections: times that the tolerance was tightened after a first verification failed.
        verdict: 'pass', 'pass-within-noise' or 'fail'; None where `passed` is.
        margin: part of the tolerance that the plan kept back.
        first_verdict: before a correction.
        files: the checkpoint's files that were judged, name → sha256; empty in older files, which do not say.
        gpu: the generation whose arithmetic was judged, or 'any'; None: as the checkpoint says, whatever the GPU.
    """

    eps: Above0 | None
    passed: bool | None
    kl_mean: float
    kl_ci95: tuple[float, float]
    kl_p99: float
    kl_predicted: float | None
    perplexity_reference: Above0 | None
    perplexity_quantized: Above0 | None
    top1_agreement: Annotated[float, Within(0, 1)] | None
    tokens: Positive
    stored_bytes: Count
    stored_bytes_reference: Count
    bits_per_weight: From0
    bits_per_weight_total: From0
    data: str
    data_digest: str
    rounding: str
    corrections: Count = 0
    distortion: str = "kl"
    gpu: Annotated[str, Named(generation)] | None = None
    verdict: Annotated[str, Among(VERDICTS)] | None = None
    confidence: Annotated[float, Within(0, 1)] = CONFIDENCE
    margin: Annotated[float, Within(0, 1)] | None = None
    first_verdict: FirstVerdict | None = None
    texts: list[JudgedText] = field(default_factory=list)
    part: Count = 0
    length: Positive | None = None
    eval_tokens: Positive | None = None
    provenance: Provenance | None = None
    files: dict[str, str] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Plain values; a GPU is there if one was named."""
        value = asdict(self)
        if self.gpu is None:
            del value["gpu"]
        return value

    def __repr__(self) -> str:
        return summary_line("Verification", self._shown())

    def _repr_html_(self) -> str:
        return summary_html("verification", self._shown())

    def _shown(self) -> dict[str, str]:
        """What a person wants to see first."""
        (low, high), (number, what) = self.kl_ci95, self.counted(self.tokens)
        rows = {
            "verdict": self.verdict or "none, no tolerance was asked for",
            self.distortion: f"{self.kl_mean:.4g} ({low:.4g} to {high:.4g})",
            "eps": "none" if self.eps is None else f"{self.eps:g}",
            "text": f"{number} {what} of {self.data}",
            "stored": f"{human_bytes(self.stored_bytes)} of {human_bytes(self.stored_bytes_reference)}",
        }
        if self.perplexity_reference is not None and self.perplexity_quantized is not None:
            rows["perplexity"] = f"{self.perplexity_reference:.3f} to {self.perplexity_quantized:.3f}"
        if self.top1_agreement is not None:
            rows[f"same top {self.choice}"] = f"{self.top1_agreement:.2%}"
        return rows

    def counted(self, positions: int) -> tuple[int, str]:
        """What so many positions are: tokens of a text, or images, recordings, or steps of a pipeline."""
        if self.length is None or self._material == "text":
            return positions, "tokens"
        return positions // self.length, self._material

    @property
    def choice(self) -> str:
        """What the model finds most likely."""
        return "class" if self._material == "images" else "token"

    @property
    def _material(self) -> str:
        task = task_named(self.distortion)
        return "text" if task is None else task.material

    def save(self, path: str | Path) -> None:
        """Write verification.json, with its checksum."""
        write_json(Path(path), sealed({"version": VERSION, **self.to_json()}))

    @classmethod
    def load(cls, path: str | Path) -> Verification:
        """Read verification.json.

        Raises:
            InputError: missing, changed, none, of another version, or one that contradicts itself; names the field.
        """
        path = Path(path)
        value = read_json(path, VERIFICATION, (0, 1, VERSION))
        if value.pop("version", 0) < VERSION:
            _add_verdict(value)
        place = VERIFICATION.place(path)
        made: Verification = read(cls, value, place)
        if made.kl_ci95[0] > made.kl_ci95[1]:
            raise place.within("kl_ci95").wrong(f"goes from {made.kl_ci95[0]:g} to {made.kl_ci95[1]:g}")
        smallest = min(made.kl_mean, made.kl_p99, made.kl_mean if made.kl_predicted is None else made.kl_predicted)
        if impossible(made.distortion, smallest):
            raise place.wrong(f"has a kl of {smallest:g}, and {made.distortion} is never below 0")
        kept = None if made.eps is None else made.kl_mean <= made.eps
        if (made.passed is None) != (kept is None) or (kept and not made.passed):  # per site eps promises more in all
            raise place.within("passed").wrong(f"is {made.passed}, with a kl_mean of {made.kl_mean:g}, eps {made.eps}")
        if made.passed != (None if made.verdict is None else made.verdict != FAIL):
            raise place.within("verdict").wrong(f"is {made.verdict!r}, and passed is {made.passed}")
        return made


def _add_verdict(value: dict[str, Any]) -> None:
    """What a file of an older version says, in the words of this one; what cannot be read stays for the schema."""
    passed, ends, eps = value.get("passed"), value.get("kl_ci95"), value.get("eps")
    if passed is False:
        value["verdict"] = FAIL
    elif passed is True and isinstance(ends, list) and len(ends) == 2 and isinstance(eps, float | int):
        high = ends[1] if isinstance(ends[1], float | int) else 0.0
        value["verdict"] = verdict_of(0.0, high, eps)


@dataclass(frozen=True)
class Comparison:
    """Two models on one text, before figures are summed up.

    Attributes:
        kl: (samples, terms), the distortion; KL: a term is a token, nats.
        tokens: positions of all samples.
        metrics: what the task reports, with what each figure is made of, (samples, …).
    """

    kl: np.ndarray
    tokens: int
    metrics: tuple[tuple[Metric, np.ndarray], ...] = ()

    def interval(self, seed: int = 0, confidence: float = CONFIDENCE) -> tuple[float, float]:
        """Confidence interval of the mean distortion, over samples."""
        return bootstrap_interval(self.kl.mean(1), seed, confidence)

    def summary(self, seed: int = 0, confidence: float = CONFIDENCE) -> dict[str, Any]:
        """The fields of `Verification` that come from the text; what is not reported of this task is None."""
        return {
            "kl_mean": float(self.kl.mean()),
            "kl_ci95": self.interval(seed, confidence),
            "kl_p99": float(np.quantile(self.kl, 0.99)),
            **dict.fromkeys(metric.name for metric in CAUSAL.metrics),
            **{metric.name: metric.total(values) for metric, values in self.metrics},
            "tokens": self.tokens,
        }


def joined(parts: Sequence[Comparison]) -> Comparison:
    """Comparisons on portions of one text, as one."""
    metrics = zip(*(part.metrics for part in parts), strict=True)
    return Comparison(
        np.concatenate([part.kl for part in parts]),
        sum(part.tokens for part in parts),
        tuple((each[0][0], np.concatenate([values for _, values in each])) for each in metrics),
    )


def of_all(workers: Workers, own: Comparison | None, distortion: Distortion) -> Comparison:
    """The comparisons of all processes as one, at all of them.

    Args:
        own: on this process's samples; None where it has none.
    """
    if workers.size == 1:
        assert own is not None
        return own
    arrays = {} if own is None else {"kl": own.kl, "tokens": np.array(own.tokens)}
    arrays |= {} if own is None else {metric.name: values for metric, values in own.metrics}
    sent = save({name: np.ascontiguousarray(values) for name, values in arrays.items()}) if arrays else b""
    metrics = distortion.task.metrics if distortion.task else ()
    return joined(
        [
            Comparison(found["kl"], found["tokens"].item(), tuple((metric, found[metric.name]) for metric in metrics))
            for found in map(load, filter(None, workers.all_bytes(sent)))
        ]
    )


@torch.no_grad()
def compare(
    reference: Output,
    quantized: Output,
    samples: Samples,
    advance: Callable[[str], None] = lambda step: None,
    distortion: Distortion | None = None,
) -> Comparison:
    """Run both models over all samples, a batch at a time.

    Args:
        distortion: of what the two return; KL of the next token unless given.
    Raises:
        InputError: no tokens.
    """
    if samples.tokens == 0:
        raise InputError("no held-out tokens to verify on; raise --eval-tokens or give more --eval-data")
    distortion = distortion or OutputKL()
    metrics = distortion.task.metrics if distortion.task else ()
    distances: list[Tensor] = []
    parts: list[list[Tensor]] = [[] for _ in metrics]
    for batch in samples.split():
        with products_in(torch.float32, samples.device):
            expected, got = reference(batch), quantized(batch)
        distances.append(distortion.between(expected, got, batch))
        for part, metric in zip(parts, metrics, strict=True):
            part.append(metric.values(expected, got, batch))
        advance("verify")
    values = [torch.cat(part).cpu().numpy() for part in parts]
    return Comparison(torch.cat(distances).cpu().numpy(), samples.tokens, tuple(zip(metrics, values, strict=True)))
