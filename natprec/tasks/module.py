"""Any module of torch: its samples are given, and its distortion says what is compared."""

from __future__ import annotations

from typing import Any

from natprec.tasks.samples import Samples
from natprec.tasks.task import Task


class AnyModule(Task):
    """A module called with named tensors; its convolutions are sites.

    Args:
        samples: that it is measured on.
    """

    name = "module"
    noun = "a module"
    family = ""
    material = "samples"
    distortion = "output"
    reader = ""
    convolutions = True

    def __init__(self, samples: Samples) -> None:
        self._samples = samples

    def probe(self, model: Any) -> Samples:
        """The first of its samples."""
        return self._samples[:1]

    def made_up(self, model: Any, count: int, length: int, seed: int | None = None) -> Samples:
        """Its own: what else a module would take is not known."""
        return self._samples[:count]
