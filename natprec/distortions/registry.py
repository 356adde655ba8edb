"""The distortions by name: what the configuration lists, found in the modules of this folder when asked for."""

from __future__ import annotations

import importlib

from natprec.config import DISTORTIONS, MARGIN
from natprec.distortions.base import Distortion
from natprec.errors import unknown
from natprec.tasks import Task

SLACK = 1e-9
"""Of a distortion that is next to none: a KL is a sum of logarithms."""


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


def task_named(name: str) -> Task | None:
    """What models with the distortion of this name are for; None: any, or a distortion of the user's own."""
    return named(name).task if name in DISTORTIONS else None


def margin_of(name: str, asked: float | None) -> float:
    """What plans keep back of a tolerance: what was asked for, or else that of the distortion with this name."""
    if asked is not None:
        return asked
    return named(name).margin if name in DISTORTIONS else MARGIN


def impossible(name: str, value: float) -> bool:
    """Whether the distortion with this name never has such a value: one below 0, but for how sums round.

    Of a distortion that is not known, nobody can say.
    """
    return value < -SLACK and name in DISTORTIONS and not named(name).falls
