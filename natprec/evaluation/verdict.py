"""Three verdicts, and how much text it takes to reach one.

A mean over held-out text has an interval. A promise is kept (`pass`) where the interval's upper end is within the
tolerance, kept as far as the text can tell (`pass-within-noise`) where only the mean is, and broken (`fail`) elsewhere.
Text is added in portions until the interval is narrow beside the tolerance, so that most runs end in a clear verdict.
Of several texts the one whose interval ends highest decides, and is the one that is read on.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Protocol

from natprec.tasks import Samples
from natprec.utils.schema import Among, Positive

PASS, WITHIN_NOISE, FAIL = "pass", "pass-within-noise", "fail"
VERDICTS = (PASS, WITHIN_NOISE, FAIL)

FIRST, MOST = 4096, 32_768
"""Tokens of a text's first portion, and of all texts together, where no number is asked for."""

NARROW = 0.05
"""Half-width of the interval, as a part of the tolerance, at which no more text is needed."""

SPARE = 1.1
"""More text than the first portion's spread asks for: that spread is an estimate itself."""


def verdict_of(kl_mean: float, high: float, promise: float) -> str:
    """The verdict on a mean with the upper end of its interval.

    >>> verdict_of(0.009, 0.0095, 0.01), verdict_of(0.009, 0.011, 0.01), verdict_of(0.011, 0.012, 0.01)
    ('pass', 'pass-within-noise', 'fail')
    """
    if not kl_mean <= promise:
        return FAIL
    return PASS if high <= promise else WITHIN_NOISE


@dataclass(frozen=True)
class FirstVerdict:
    """The verdict on the first plan, before a correction; without a correction, the verdict itself."""

    verdict: Annotated[str, Among(VERDICTS)] | None
    kl_mean: float
    kl_ci95: tuple[float, float]


@dataclass(frozen=True)
class JudgedText:
    """A text that judged.

    Attributes:
        digest: of the file's bytes; of a text that is no file, of its token ids.
        tokens: that judged; `kl_mean` and `kl_ci95` are the distortion on them.
    """

    name: str
    digest: str
    tokens: Positive
    kl_mean: float
    kl_ci95: tuple[float, float]


class HeldOutText(Protocol):
    """A text that gives its windows in an order of which every beginning is spread over the text."""

    @property
    def name(self) -> str:
        """Name of the text in files that are passed on."""

    @property
    def digest(self) -> str | None:
        """Digest of the file's bytes; None if the text is not a file."""

    def take(self, tokens: int) -> Samples | None:
        """The next samples, with so many tokens or what is left; None: nothing is."""


@dataclass(frozen=True)
class Portions:
    """Decides how much text judges.

    Attributes:
        first: tokens of each text's first portion; `most`: of all texts together.
        enough: half-width of the interval at which to stop; None: after the first portion.
    """

    first: int
    most: int
    enough: float | None = None

    @classmethod
    def of(cls, tokens: int | None, promise: float | None, texts: int = 1) -> Portions:
        """The rule for a run.

        Args:
            tokens: a number that the user fixed, for all texts together.
            promise: the tolerance; without one the first portion has to do.
        """
        if tokens is not None:
            each = max(1, tokens // texts)
            return cls(each, each * texts)
        if promise is None:
            return cls(FIRST, FIRST * texts)
        return cls(FIRST, MOST, NARROW * promise)

    def more(self, tokens: int, others: int, half_width: float) -> int:
        """Tokens to add to so many, whose interval has this half-width; 0 or less: no more are needed.

        Args:
            others: tokens of the other texts.

        >>> Portions(4096, 32768, 0.5).more(4096, 0, 1.0), Portions(4096, 32768, 0.5).more(4096, 4096, 0.4)
        (13927, 0)
        """
        most = self.most - others
        if self.enough is None or tokens >= most or not half_width > self.enough:  # NaN ends it, too
            return 0
        wanted = most if self.enough == 0 else tokens * SPARE * (half_width / self.enough) ** 2
        return math.ceil(min(wanted, most)) - tokens
