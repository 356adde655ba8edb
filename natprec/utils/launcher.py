"""What a launcher (torchrun, `accelerate launch`) says in the environment; read without importing torch."""

from __future__ import annotations

import os

from natprec.errors import InputError

SHARED = ("quantize", "measure", "apply", "verify", "eval")
"""Commands whose work several processes share."""


def launched() -> int:
    """How many processes the launcher says that it started.

    Raises:
        InputError: the variable is no number.
    """
    return number("WORLD_SIZE", 1)


def refuse_many(what: str) -> None:
    """Raises InputError where `what`, which one process does, was started in several."""
    if launched() > 1:
        raise InputError(
            f"{what} was started in {launched()} processes and works in one; start it without the launcher "
            f"(natprec {', '.join(SHARED)} share their work)"
        )


def number(name: str, default: int | None = None) -> int:
    """One of the launcher's variables.

    Raises:
        InputError: it is missing, or no number.
    """
    text = os.environ.get(name, "" if default is None else str(default))
    if not text.isdigit():
        raise InputError(
            f"{name} is {text!r} while WORLD_SIZE is {os.environ.get('WORLD_SIZE')}; "
            "start with torchrun or accelerate launch, which set both"
        )
    return int(text)
