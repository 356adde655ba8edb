"""Packages that only some options need: refused by name where they are not installed."""

from __future__ import annotations

import importlib.util

from natprec.errors import InputError

BITSANDBYTES = "run: pip install 'natprec[bitsandbytes]'"


def require(package: str, why: str, remedy: str) -> None:
    """Stop where a package is not installed.

    Args:
        why: what needs it.
    Raises:
        InputError: says how to go on.
    """
    if importlib.util.find_spec(package) is None:
        raise InputError(f"{why}, and {package} is not installed; {remedy}")
