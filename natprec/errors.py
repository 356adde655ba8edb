"""What the user reads when something is wrong: the value, the cause, the remedy.

Every error that a user can cause is a `NatprecError`; the command line prints its text without a
traceback and exits with 2. Anything else that escapes is a defect of natprec and keeps its trace.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class NatprecError(Exception):
    """A request that cannot be carried out; the message says value, cause and remedy."""


class InputError(NatprecError, ValueError):
    """An argument, file or text that cannot be used."""


class ModelError(NatprecError):
    """A model that cannot be loaded, measured or quantized."""


class VerdictError(ModelError):
    """A checkpoint that is written, complete, and could not be judged."""


class BudgetError(NatprecError, ValueError):
    """A tolerance or size that no combination of the measured formats reaches."""


class BoundError(NatprecError, TypeError):
    """More information than an operation takes in: a type error of bundles."""


class OutputError(NatprecError, OSError):
    """A result that cannot be written."""


class WorkerError(NatprecError):
    """Another process of the same run did not come, or has died."""


def unknown(kind: str, name: str, known: Iterable[str]) -> InputError:
    """The error for a name that does not exist: suggests the nearest, then lists all.

    >>> str(unknown("engine", "vlm", ["vllm", "transformers"]))
    "unknown engine 'vlm'; did you mean 'vllm'? known: transformers, vllm"
    """
    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    hint = f"; did you mean {near[0]!r}?" if near else ";"
    return InputError(f"unknown {kind} {name!r}{hint} known: {', '.join(names)}")


def first_line(error: BaseException) -> str:
    """The error's first line, at most 200 characters; its type if it says nothing."""
    lines = str(error).strip().splitlines()
    return lines[0].strip().rstrip(".")[:200] if lines else type(error).__name__
