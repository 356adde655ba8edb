"""The curve of a site: what was measured there, per format."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from natprec.formats import Format
from natprec.models.routing import MIN_TOKENS
from natprec.models.weight_sites import Site
from natprec.roundings import rounding_named

LEARNED = "learned"
"""The rounding that leaves less than GPTQ by a factor that was measured by itself."""

ARRAYS = {
    "forward": "forward",
    "backward": "backward",
    "energy": "energy",
    "shares": "shares",
    "kept": "unquantized",
    "alignment": "alignment",
}
"""What an array is called in files → the attribute of a `Curve`."""


@dataclass(frozen=True)
class Curve:
    """The measurement of one site.

    Attributes:
        formats: candidates; none where no sample reached the site: its cost is unknown, and it stays at 16 bits.
        forward: (parts, pools, formats) distortion in its unit, nats per token if it is KL, for errors of random
            sign; a part is one kind of text.
        backward: (pools, formats) E‖∇ - Q(∇)‖², in squared units of the gradient.
        energy: (pools,) E‖∇‖², to which `backward` is relative; 0 means that nothing reached the site.
        shares: (formats,) of `forward` that is left by GPTQ, which makes up for errors; 1 where it does not apply.
        alignment: (formats,) of `forward` for the errors that rounding to nearest really makes.
        unquantized: (parts, pools) distortion of storing the site in 16 bits; 0 for a 16-bit model.
        largest: magnitudes that a fixed scale must reach, as the model is and as GPTQ finds it; of activations only.
        by_head: of keys or values that were measured with a scale for each head: its largest magnitudes, both ways.
        tokens: of an expert, those that were routed to it; None: the site sees all. An expert that saw fewer than
            `natprec.models.routing.MIN_TOKENS` has its curve from the others: see `natprec.measurement.few_tokens`.
        learned: of what GPTQ leaves, the part that learned rounding leaves; 1 where that is not known.
        scaled: whether `shares` suppose that the site's columns are rescaled before GPTQ: see `natprec.transforms`.
    """

    site: Site
    formats: tuple[Format, ...]
    forward: np.ndarray
    backward: np.ndarray
    energy: np.ndarray
    shares: np.ndarray
    unquantized: np.ndarray
    alignment: np.ndarray
    scaled: bool = False
    largest: tuple[float, float] = (0.0, 0.0)
    tokens: int | None = None
    by_head: tuple[tuple[float, ...], tuple[float, ...]] | None = None
    learned: float = 1.0

    @property
    def few(self) -> bool:
        """Whether it is an expert that saw too few tokens to be measured by itself."""
        return self.tokens is not None and self.tokens < MIN_TOKENS

    def unknown(self) -> Curve:
        """The same without any candidate format."""
        return self.only(())

    def only(self, formats: Sequence[Format]) -> Curve:
        """The same with some of its candidates."""
        places = [self.formats.index(fmt) for fmt in formats]
        return replace(
            self,
            formats=tuple(formats),
            forward=self.forward[..., places],
            backward=self.backward[..., places],
            shares=self.shares[places],
            alignment=self.alignment[places],
        )

    def kl(self, rounding: str = "rtn") -> np.ndarray:
        """(formats,) distortion: the largest over the kinds of text, so that a promise on one holds on all."""
        return np.asarray(self.forward.mean(1).max(0)) * self._factors(rounding)

    def _factors(self, rounding: str) -> np.ndarray:
        """(formats,): GPTQ's errors are others than those of rounding to nearest, with no such alignment."""
        if not rounding_named(rounding).compensates:
            return self.alignment
        return self.learned * self.shares if rounding == LEARNED else self.shares

    @property
    def unquantized_kl(self) -> float:
        """KL of storing the site unquantized, the largest over the kinds of text."""
        return float(self.unquantized.mean(1).max())

    def samples(self, fmt: Format | None, rounding: str = "rtn") -> np.ndarray:
        """(pools,) KL of a format (None: unquantized) on the kind of text where it is largest."""
        if fmt is None:
            return np.asarray(self.unquantized[self.unquantized.mean(1).argmax()])
        values = self.everywhere(fmt, rounding)
        return np.asarray(values[values.mean(1).argmax()])

    def everywhere(self, fmt: Format | None, rounding: str = "rtn") -> np.ndarray:
        """(parts, pools) KL of a format (None: unquantized), on each kind of text."""
        if fmt is None:
            return self.unquantized
        column = self.formats.index(fmt)
        return self.forward[:, :, column] * self._factors(rounding)[column]

    def share(self, fmt: Format, rounding: str = "rtn") -> float:
        """Predicts the fraction of the distortion of errors to nearest that a rounding's own errors cause."""
        column = self.formats.index(fmt)
        return float(self._factors(rounding)[column] / self.alignment[column])
