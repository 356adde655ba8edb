"""The samples of a run: calibration text and held-out text."""

from __future__ import annotations

from dataclasses import replace

from natprec.config import EVAL_TOKENS, QuantizeConfig
from natprec.data.ordinary import CALIBRATION, ORDINARY
from natprec.data.ordinary import NAME as ORDINARY_NAME
from natprec.data.readers import READERS
from natprec.data.seen import NO_PIECES, Pieces, same_text, source_digest
from natprec.errors import InputError
from natprec.measurement.subject import Subject
from natprec.tasks import Samples
from natprec.utils.progress import Stages
from natprec.utils.records import OWN_TEXT, public_name


def calibration_samples(config: QuantizeConfig, subject: Subject, stages: Stages) -> Samples:
    """The calibration samples.

    Half of them are `data`, or else ordinary text, and half are the model's own text: each site is charged its
    cost on the worse of the two, and the promise survives text that `data` did not foresee. An encoder, or a
    model whose weights are on disk, cannot write, so that `data` is all there is.

    Raises:
        InputError: no text to be had.
    """
    if not subject.writes:
        return _samples(config, subject, stages, config.data, config.tokens, "calibration")
    half = max(1, round(config.tokens / config.length / 2)) * config.length
    source = config.data or str(CALIBRATION)
    given = _samples(config if config.data else replace(config, text_column=None), subject, stages, source, half,
                     "calibration")  # fmt: skip
    return given.followed_by(_samples(config, subject, stages, None, half, "calibration"))


def calibration_text(config: QuantizeConfig, subject: Subject) -> tuple[str, str | None]:
    """Name and `source_digest` of what is measured on beside the model's own text."""
    if config.data is not None:
        return public_name(config.data), source_digest(config.data)
    return (ORDINARY_NAME, source_digest(str(CALIBRATION))) if subject.writes else (OWN_TEXT, None)


def given_samples(config: QuantizeConfig, subject: Subject, stages: Stages) -> Samples:
    """Samples of `data` alone; the model's own text without it. Peers measure on these."""
    return _samples(config, subject, stages, config.data, config.tokens, "calibration")


def calibration_parts(config: QuantizeConfig, subject: Subject) -> int:
    """Kinds of text in `calibration_samples`."""
    return 2 if subject.writes else 1


def held_out_samples(config: QuantizeConfig, subject: Subject, stages: Stages, seen: Pieces = NO_PIECES) -> Samples:
    """The held-out samples: another part of the text, or another text, without windows that were `seen`."""
    source = config.eval_data or config.data
    return _samples(config, subject, stages, source, config.eval_tokens or EVAL_TOKENS, "held-out", seen)


def read_samples(
    config: QuantizeConfig, subject: Subject, stages: Stages, source: str, count: int, least: int, seen: Pieces
) -> Samples:
    """Reads `count` held-out samples of a source, at least `least` of them; see `held_out_samples`."""
    return _samples(config, subject, stages, source, count * config.length, "held-out", seen, least)


def _samples(
    config: QuantizeConfig,
    subject: Subject,
    stages: Stages,
    source: str | None,
    tokens: int,
    split: str,
    seen: Pieces = NO_PIECES,
    least: int | None = None,
) -> Samples:
    if source is None and subject.task.generates and not subject.writes:
        raise InputError(
            "this model does not write its own text: its weights are on disk, where that is too slow, or its code "
            "cannot; give text with --data"
        )
    steps = None if source else tokens
    with stages.stage(f"{split} text" if source else f"{split} text, written by the model", steps) as advance:
        done = 0

        def progress(now: int, total: int) -> None:
            nonlocal done
            for _ in range(done, now):
                advance("")
            done = now

        device = next(subject.model.parameters()).device
        return READERS[subject.task.reader](
            subject.tokenizer,
            source,
            sequences=max(1, round(tokens / config.length)),
            length=config.length,
            split=split,
            shared=source not in (str(CALIBRATION), str(ORDINARY)) and shares_text(config),
            seen=seen,
            least=least,
            model=subject.model,
            writes=subject.writes,
            seed=config.seed,
            text_column=config.text_column,
            progress=progress,
            note=stages.note,
        ).to(device)


def shares_text(config: QuantizeConfig) -> bool:
    """Whether a run measures and judges on one text, under whatever names."""
    if config.eval_data is None or config.data is None:
        return config.eval_data is None
    return same_text(public_name(config.data), source_digest(config.data), config.eval_data)
