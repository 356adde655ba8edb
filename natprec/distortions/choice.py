"""The distortions by name: what the configuration lists, found in the modules of this folder when asked for."""

from __future__ import annotations

import importlib

from natprec.config import DISTORTIONS
from natprec.distortions.base import Distortion
from natprec.errors import unknown


def named(name: str) -> Distortion:
    """The distortion with this name.

    Raises:
        InputError: there is none; the message suggests the nearest.
    """
    if name not in DISTORTIONS:
        raise unknown("distortion", name, DISTORTIONS)
    module, _, value = DISTORTIONS[name].partition(":")
    found: Distortion = getattr(importlib.import_module(f"natprec.distortions.{module}"), value)
    return found
