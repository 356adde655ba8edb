"""The functions that turn a source into samples, by a task's name for them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from natprec.data.images import read_images
from natprec.data.speech import read_speech
from natprec.data.steps import read_steps
from natprec.data.windows import load_tokens
from natprec.tasks import Samples


def read_text(tokenizer: Any, source: str | None, **wanted: Any) -> Samples:
    """Windows of tokens: see `natprec.data.windows.load_tokens`."""
    return Samples.text(load_tokens(tokenizer, source, **wanted))


READERS: dict[str, Callable[..., Samples]] = {
    "text": read_text,
    "images": read_images,
    "speech": read_speech,
    "steps": read_steps,
}
"""Name → what is called with a processor (of text, a tokenizer), a source, and what is wanted of it, by keyword."""
