"""A conversation as text, by a tokenizer's chat template.

A template is a program that comes with a checkpoint. transformers runs it in a sandbox, which keeps it from the system
but not from running for ever or filling the memory: here it also has limits.
"""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator, Sequence
from types import FrameType
from typing import Any

from natprec.errors import ModelError, first_line
from natprec.utils.memory import growing_by

SECONDS = 2.0
"""Of CPU time for one conversation; usual templates take a thousandth."""

BYTES = 1 << 29
CHARACTERS = 1 << 24

_REMEDY = "replace or remove the chat template of this checkpoint"

Turn = dict[str, Any]
"""A message: at least its role and its content."""


class _Stop(BaseException):
    """No Exception: a template's compiler passes over those."""


class RefusedError(ModelError):
    """A template raised an error over one conversation; it may take others."""

    def __init__(self, cause: str) -> None:
        super().__init__(f"the tokenizer's chat template fails ({cause}); {_REMEDY}")
        self.cause = cause


def has_template(tokenizer: Any) -> bool:
    """Whether a tokenizer came with a chat template."""
    return bool(getattr(tokenizer, "chat_template", None))


def rendered(tokenizer: Any, turns: Sequence[Turn], **options: Any) -> str:
    """The text that a model reads of a conversation, special tokens included.

    Templates of models that see (LLaVA's) may look for parts of a message, and leave out what is plain text: such a
    conversation is given to them in parts.

    Args:
        options: of transformers' apply_chat_template.
    Raises:
        RefusedError: the template raised an error.
        ModelError: it exceeded a limit.
    """
    plain = [turn for turn in turns if isinstance(turn.get("content"), str)]
    said = next((turn["content"].strip() for turn in reversed(plain) if turn.get("role") == "user"), "")
    refused: RefusedError | None = None
    try:
        text = _rendered(tokenizer, turns, options)
        if said in text:
            return text
    except RefusedError as error:
        if not plain:
            raise
        refused = error
    with contextlib.suppress(ModelError):
        in_parts = _rendered(tokenizer, [_in_parts(turn) for turn in turns], options)
        if refused is not None or said in in_parts:
            return in_parts
    if refused is not None:
        raise refused
    return text


def _in_parts(turn: Turn) -> Turn:
    content = turn.get("content")
    return {**turn, "content": [{"type": "text", "text": content}]} if isinstance(content, str) else turn


def _rendered(tokenizer: Any, turns: Sequence[Turn], options: dict[str, Any]) -> str:
    try:
        with growing_by(BYTES), _within(SECONDS):
            text = tokenizer.apply_chat_template(list(turns), tokenize=False, **options)
    except (TimeoutError, MemoryError) as error:
        spent = (
            f"takes more than {SECONDS:g} seconds"
            if isinstance(error, TimeoutError)
            else f"takes more than {BYTES} bytes"
        )
        raise ModelError(f"the tokenizer's chat template {spent} for one conversation; {_REMEDY}") from error
    except Exception as error:  # whatever a stranger's program does
        raise RefusedError(first_line(error)) from error
    if not isinstance(text, str) or len(text) > CHARACTERS:
        size = f"{len(text)} characters" if isinstance(text, str) else type(text).__name__
        raise ModelError(f"the tokenizer's chat template makes {size} of one conversation; {_REMEDY}")
    return text


@contextlib.contextmanager
def _within(seconds: float) -> Iterator[None]:
    """Raise TimeoutError in the block after so much CPU time; Python lets only the main thread do that."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, frame: FrameType | None) -> None:
        raise _Stop

    before = signal.signal(signal.SIGVTALRM, stop)
    signal.setitimer(signal.ITIMER_VIRTUAL, seconds)
    try:
        yield
    except _Stop as error:
        raise TimeoutError from error
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)
