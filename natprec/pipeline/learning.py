"""Learning against the end as a step of a run: what the user asked for, the text, and the file it is resumed from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from torch import Tensor

from natprec.config import QuantizeConfig
from natprec.data.seen import Pieces, pieces_of
from natprec.measurement.subject import Subject
from natprec.models.hidden_states import state_key
from natprec.models.layers import Layer, put_codes
from natprec.models.weight_sites import site_layer
from natprec.models.weights import present_values
from natprec.pipeline.early_folders import refuse_learning
from natprec.pipeline.learning_text import LearningText, learning_text
from natprec.pipeline.resume import LEARNING
from natprec.quantizers import QuantizedTensor
from natprec.rounding.learnable import Learnable
from natprec.rounding.learning_state import Kept, Progress, under
from natprec.rounding.teacher import HeldBack, Teacher
from natprec.rounding.to_end import Budget, learn_to_end
from natprec.rounding.together import codes_from, tensors_of
from natprec.solver import Plan
from natprec.tasks import SPEECH, Samples
from natprec.utils.human import human_seconds
from natprec.utils.progress import Stages

UNBOUNDED = 2**40
"""Tokens where only the time is bounded."""

Found = tuple[Mapping[str, Tensor], Progress]
"""What an earlier run left."""


@dataclass(frozen=True)
class Learning:
    """What learning is given.

    Attributes:
        tokens: at most; `minutes`: at most, where that is bounded.
        folder: for the state that a killed run goes on from; None: there is none.
    """

    text: LearningText
    tokens: int
    minutes: float | None = None
    folder: Path | None = None

    @property
    def budget(self) -> Budget:
        """The same in steps."""
        return Budget(max(1, round(self.tokens / self.text.step_tokens)), self.minutes)

    def seen(self, samples: Samples) -> Pieces:
        """Of all that may not judge the result: what was measured on, and what is learned from."""
        return np.union1d(pieces_of(samples), self.text.pieces)

    def kept(self, subject: Subject, plan: Plan, rounding: str, samples: Samples | None) -> Kept:
        """The file of a plan, and what must be the same for it to be gone on from."""
        text, products = self.text, str(subject.segmented.products)
        texts = [each.digest for each in (samples, text.read, text.judging) if each is not None]
        budget = f"{self.tokens} {self.minutes} {text.seed}"
        key = state_key(subject.digest, plan.content(), rounding, products, *texts, budget)
        file = None if self.folder is None else self.folder / LEARNING.replace("*", key)
        return Kept(file, key, subject.segmented.workers)


def learning_asked(
    config: QuantizeConfig,
    subject: Subject,
    samples: Samples | None,
    stages: Stages,
    folder: Path | None = None,
    more: bool | Samples | None = True,
) -> Learning | None:
    """What a configuration asks for; None if nothing.

    Args:
        samples: the calibration text; more: other text than this, or whether there may be some to be read.
    """
    refuse_learning(config, subject.name, subject.task == SPEECH)
    if samples is None or not config.learns:
        return None
    text = learning_text(config, subject, samples, stages, more)
    return Learning(text, config.learn_tokens or UNBOUNDED, config.time, folder)


def rounded_before(subject: Subject, plan: Plan, found: Found) -> dict[str, QuantizedTensor]:
    """The rounding that an earlier run learned from; the model holds it afterwards."""
    tensors, _ = found
    parameters = dict(subject.model.named_parameters())
    for name, value in under("other/", tensors).items():
        parameters[name].data = value.to(parameters[name].device)
    formats = {name: choice.format for name, choice in plan.sites.items() if choice.format is not None}
    device = next(iter(parameters.values())).device
    codes = codes_from(under("start/", tensors), formats, device)
    put_codes(_layers(subject, codes), codes)
    return {site.name: codes[site.name] for site in subject.sites if site.name in codes}


def learn(
    learning: Learning,
    subject: Subject,
    codes: dict[str, QuantizedTensor],
    unrounded: Mapping[str, Tensor],
    original: Mapping[str, Tensor],
    kept: Kept,
    found: Found | None,
    stages: Stages,
) -> dict[str, QuantizedTensor]:
    """Learn from a rounding; the model, which holds it, is the best that was found afterwards.

    Args:
        unrounded: site → what was rounded, where that is not the original weight.
        original: the model's weights by parameter name.
        found: what an earlier run left, whose rounding this is.
    """
    segmented = subject.segmented
    layers = _layers(subject, codes)
    names = {id(parameter): name for name, parameter in subject.model.named_parameters()}
    quantized = {names[id(layer.weight)] for layer in layers.values()}
    others = {f"other/{name}": value for name, value in present_values(subject.model).items() if name not in quantized}
    begins = {
        name: layer.kind.matrix(original[names[id(layer.weight)]], layer.groups) for name, layer in layers.items()
    } | dict(unrounded)
    learnable = Learnable(segmented, layers, codes, begins, subject.storage_dtype)
    text, budget = replace(learning.text, weights=original), learning.budget
    with stages.stage("learn", budget.steps if learning.tokens < UNBOUNDED else None) as advance:
        outcome = learn_to_end(
            learnable, Teacher(segmented, original), HeldBack(segmented, original, text.judging), text.batch, budget,
            kept=kept, found=found, beside=_kept_beside(codes, others), advance=advance, say=stages.note,
        )  # fmt: skip
    stages.note(
        f"learned from {outcome.steps * text.step_tokens} tokens in {human_seconds(outcome.seconds)}: "
        f"{subject.distortion.label} on text that was held back {outcome.before:.4g} -> {outcome.after:.4g}"
        + ("" if outcome.after < outcome.before else ": not better, undone")
    )
    return outcome.codes


def _layers(subject: Subject, codes: Mapping[str, QuantizedTensor]) -> dict[str, Layer]:
    return {site.name: site_layer(subject.model, site) for site in subject.sites if site.name in codes}


def _kept_beside(codes: Mapping[str, QuantizedTensor], others: Mapping[str, Tensor]) -> dict[str, Tensor]:
    start = {f"start/{name}": value for name, value in tensors_of(codes).items()}
    return start | {name: value.cpu().contiguous() for name, value in others.items()}
