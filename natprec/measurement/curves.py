"""The curve of a site: what was measured there, per format."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from natprec.formats import NumberFormat
from natprec.sites import Site


@dataclass(frozen=True)
class Curve:
    """What was measured at one site.

    Attributes:
        forward: (parts, units, formats) KL in nats per token; a part is one kind of text.
        backward: (units, formats) E‖∇ - Q(∇)‖², in squared units of the gradient.
        energy: (units,) E‖∇‖², to which `backward` is relative; 0 means that nothing reached the site.
        kept: (parts, units) KL of storing the site in 16 bits, unquantized; 0 for a 16-bit model.
    """

    site: Site
    formats: tuple[NumberFormat, ...]
    forward: np.ndarray
    backward: np.ndarray
    energy: np.ndarray
    kept: np.ndarray

    @property
    def kl(self) -> np.ndarray:
        """(formats,) nats per token: the largest over the kinds of text, so that a promise on one holds on all."""
        return np.asarray(self.forward.mean(1).max(0))

    @property
    def kept_kl(self) -> float:
        """KL of storing the site unquantized, the largest over the kinds of text."""
        return float(self.kept.mean(1).max())

    def samples(self, fmt: NumberFormat | None) -> np.ndarray:
        """(units,) KL of a format (None: unquantized) on the kind of text where it is largest."""
        values = self.kept if fmt is None else self.forward[:, :, self.formats.index(fmt)]
        return np.asarray(values[values.mean(1).argmax()])
