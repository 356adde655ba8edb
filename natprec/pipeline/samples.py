"""The samples of a run: calibration text and held-out text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from natprec.config import EVAL_TOKENS, QuantizeConfig
from natprec.data.folders import divided
from natprec.data.ordinary import CALIBRATION, ORDINARY
from natprec.data.ordinary import NAME as ORDINARY_NAME
from natprec.data.pictured_text import BATCH
from natprec.data.readers import READERS
from natprec.data.seen import NO_PIECES, Pieces, same_text, source_digest
from natprec.errors import InputError
from natprec.measurement.subject import Subject
from natprec.tasks import Samples
from natprec.tasks.vision_language import with_pictures
from natprec.utils.progress import Stages
from natprec.utils.records import OWN_TEXT, public_name


def calibration_samples(config: QuantizeConfig, subject: Subject, stages: Stages) -> Samples:
    """The calibration samples.

    Half of them are `data`, or else ordinary text, and half are the model's own text: each site is charged its
    cost on the worse of the two, and the promise survives text that `data` did not foresee. An encoder of text writes
    none, so that ordinary text is the other half, or both. A language model whose weights are on disk cannot write, so
    that `data` is all there is. Text about pictures is one more kind.

    Raises:
        InputError: no text to be had.
    """
    kinds = calibration_parts(config, subject)
    read, source = _to_read(config, subject)
    if kinds == 1:
        return _samples(read, subject, stages, source, config.tokens, "calibration")
    each = max(1, round(config.tokens / config.length / kinds)) * config.length
    alone = config.source is None and subject.encodes_ordinary  # its halves are two kinds: English, and what is not
    found = _samples(read, subject, stages, source, 2 * each if alone else each, "calibration")
    if subject.writes:
        found = found.followed_by(_samples(config, subject, stages, None, each, "calibration"))
    elif subject.encodes_ordinary and not alone:
        ordinary = replace(config, text_column=None)
        found = found.followed_by(_samples(ordinary, subject, stages, str(CALIBRATION), each, "calibration"))
    if subject.pictures is not None:
        files, _ = divided(subject.pictures.files)
        count = each // config.length
        pictured = pictured_samples(config, subject, stages, files, count, 2 * config.seed, "calibration")
        found = with_pictures(found, pictured)
    return found


def unmeasured_samples(config: QuantizeConfig, subject: Subject, stages: Stages, most: int, seen: Pieces) -> Samples:
    """At most so many windows of the text that `calibration_samples` reads, without those that were `seen` there.

    Raises:
        InputError: there is no text to read, or no other window in it.
    """
    read, source = _to_read(config, subject)
    if source is None:
        raise InputError("no text to read; give it with --data")
    return _samples(read, subject, stages, source, most * config.length, "calibration", seen, least=1)


def _to_read(config: QuantizeConfig, subject: Subject) -> tuple[QuantizeConfig, str | None]:
    """What calibration text is read from, and how: `data`, or else ordinary text; None where there is neither."""
    if config.source:
        return config, config.source
    ordinary = subject.writes or subject.encodes_ordinary
    return replace(config, text_column=None), str(CALIBRATION) if ordinary else None


def length_of(config: QuantizeConfig, subject: Subject) -> int:
    """Positions of a sample: of a text as many as are asked for, else those that the model makes of it."""
    return config.length if subject.task.material == "text" else subject.probe.length


def pictured_samples(
    config: QuantizeConfig, subject: Subject, stages: Stages, files: Sequence[Path], count: int, seed: int, split: str
) -> Samples:
    """So many samples with pictures; a model that cannot write has text of `data` in place of its answers.

    Raises:
        InputError: no such text, or too few positions for a picture.
    """
    assert subject.pictures is not None
    answers = None
    if not subject.writes:
        source = config.source if split == "calibration" else config.eval_data or config.source
        answers = _samples(config, subject, stages, source, count * config.length, split).ids.cpu()
    with stages.stage(f"{split} pictures", -(-count // BATCH)) as advance:
        found = subject.pictures.samples(subject.model, files, count, config.length, seed, answers, advance)
    return found.to(next(subject.model.parameters()).device)


def calibration_text(config: QuantizeConfig, subject: Subject) -> tuple[str, str | None]:
    """Name and `source_digest` of what is measured on beside the model's own text."""
    if config.source is not None:
        return public_name(config.source), source_digest(config.source)
    if subject.task.own:
        return subject.task.own, None
    _, ordinary = _to_read(config, subject)
    return (ORDINARY_NAME, source_digest(ordinary)) if ordinary else (OWN_TEXT, None)


def given_samples(config: QuantizeConfig, subject: Subject, stages: Stages) -> Samples:
    """Samples of `data` alone; the model's own text without it. Peers measure on these."""
    return _samples(config, subject, stages, config.source, config.tokens, "calibration")


def calibration_parts(config: QuantizeConfig, subject: Subject) -> int:
    """Kinds of text in `calibration_samples`."""
    return 1 + (subject.writes or subject.encodes_ordinary) + (subject.pictures is not None)


def held_out_samples(config: QuantizeConfig, subject: Subject, stages: Stages, seen: Pieces = NO_PIECES) -> Samples:
    """The held-out samples: another part of the text, or another text, without windows that were `seen`."""
    source = config.eval_data or config.source
    return _samples(config, subject, stages, source, config.eval_tokens or EVAL_TOKENS, "held-out", seen)


def read_samples(
    config: QuantizeConfig, subject: Subject, stages: Stages, source: str | None, count: int, least: int, seen: Pieces
) -> Samples:
    """Reads `count` held-out samples of a source, at least `least` of them; see `held_out_samples`."""
    return _samples(config, subject, stages, source, count * length_of(config, subject), "held-out", seen, least)


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
    steps, length = None if source else tokens, length_of(config, subject)
    what = f"{split} {subject.task.material}"
    with stages.stage(what if source or subject.task.own else f"{what}, written by the model", steps) as advance:
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
            sequences=max(1, round(tokens / length)),
            length=length,
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
    if config.eval_data is None or config.source is None:
        return config.eval_data is None
    return same_text(public_name(config.source), source_digest(config.source), config.eval_data)
