"""The tokens of a run: to measure on, and to judge on."""

from __future__ import annotations

import torch
from torch import Tensor

from natprec.config import EVAL_TOKENS, QuantizeConfig
from natprec.data.ordinary import ORDINARY
from natprec.data.seen import NO_PIECES, Pieces, same_text, source_digest
from natprec.data.windows import load_tokens
from natprec.errors import InputError
from natprec.measurement.subject import Subject
from natprec.utils.progress import Stages
from natprec.utils.records import public_name


def calibration_tokens(config: QuantizeConfig, subject: Subject, stages: Stages) -> Tensor:
    """(sequences, length) tokens to measure on.

    With `data`, half of them are the model's own text: a site then costs what it costs on the kind of
    text where it costs most, and the promise survives text that `data` did not foresee. An encoder, or a model
    whose weights are on disk, cannot write, so that `data` is all there is.

    Raises:
        InputError: no text to be had.
    """
    if config.data is None or not subject.writes:
        return _tokens(config, subject, stages, config.data, config.tokens, "calibration")
    half = max(1, round(config.tokens / config.length / 2)) * config.length
    given = _tokens(config, subject, stages, config.data, half, "calibration")
    return torch.cat([given, _tokens(config, subject, stages, None, half, "calibration")])


def given_tokens(config: QuantizeConfig, subject: Subject, stages: Stages) -> Tensor:
    """(sequences, length) tokens of `data` alone; the model's own text without it. Peers measure on these."""
    return _tokens(config, subject, stages, config.data, config.tokens, "calibration")


def calibration_parts(config: QuantizeConfig, subject: Subject) -> int:
    """Kinds of text in `calibration_tokens`."""
    return 1 if config.data is None or not subject.writes else 2


def held_out_tokens(config: QuantizeConfig, subject: Subject, stages: Stages, seen: Pieces = NO_PIECES) -> Tensor:
    """(sequences, length) tokens to judge on: another part of the text, or another text, without what was `seen`."""
    source = config.eval_data or config.data
    return _tokens(config, subject, stages, source, config.eval_tokens or EVAL_TOKENS, "held-out", seen)


def read_tokens(
    config: QuantizeConfig, subject: Subject, stages: Stages, source: str, sequences: int, least: int, seen: Pieces
) -> Tensor:
    """(sequences, length) tokens of a text to judge on, at least `least` sequences of them; see `held_out_tokens`."""
    tokens = sequences * config.length
    return _tokens(config, subject, stages, source, tokens, "held-out", seen, least)


def _tokens(
    config: QuantizeConfig,
    subject: Subject,
    stages: Stages,
    source: str | None,
    tokens: int,
    split: str,
    seen: Pieces = NO_PIECES,
    least: int | None = None,
) -> Tensor:
    if source is None and subject.task.predicts and not subject.writes:
        raise InputError("a model whose weights are on disk is too slow to write its own text; give text with --data")
    steps = None if source else tokens
    with stages.stage(f"{split} text" if source else f"{split} text, written by the model", steps) as advance:
        done = 0

        def progress(now: int, total: int) -> None:
            nonlocal done
            for _ in range(done, now):
                advance("")
            done = now

        device = next(subject.model.parameters()).device
        return load_tokens(
            subject.tokenizer,
            source,
            sequences=max(1, round(tokens / config.length)),
            length=config.length,
            split=split,  # type: ignore[arg-type]
            shared=source != str(ORDINARY) and shares_text(config),
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
