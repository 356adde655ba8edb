"""Realized codebooks (T9): the codes that occur, out of all that a format has.

A map of codes loses nothing on the data iff it is injective on the codes that occur. Entropy alone does not
tell: 17 symbols with H = 0.18 bits do not fit into 4 bits (T8). What occurred is a sample, so the mass of
codes not yet seen (Good and Turing) and the collisions on held-out data stand beside it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from natprec.errors import InputError
from natprec.inspection.information.entropy import lost_bits, miller_madow_bits, unseen_mass

HALF_CODES = 1 << 16
"""How many codes a 16-bit float has."""


@dataclass(frozen=True)
class Codebook:
    """The codes that occurred and how often.

    Attributes:
        values: (codes,) float32, what each code means; ascending, no two equal.
        counts: (codes,) int64, all positive.
        alphabet: how many codes the format has.
    """

    values: Tensor
    counts: Tensor
    alphabet: int

    @classmethod
    def of_half(cls, histogram: Tensor, dtype: torch.dtype) -> Codebook:
        """From a histogram over the 65536 codes of a 16-bit float; see `half_histogram`."""
        codes = histogram.nonzero().squeeze(1)
        values = codes.to(torch.uint16).view(dtype).float()
        return cls._merged(values, histogram[codes], HALF_CODES)

    @classmethod
    def _merged(cls, values: Tensor, counts: Tensor, alphabet: int) -> Codebook:
        """Equal values (0 and -0, or two codes of one value) count as one code."""
        distinct, place = values.unique(return_inverse=True)
        return cls(distinct, torch.zeros(len(distinct), dtype=torch.int64).index_add_(0, place, counts), alphabet)

    def rounded(self, values: Tensor, alphabet: int) -> Codebook:
        """The codebook after each code's value was replaced by another, (codes,) of `alphabet` possible."""
        return self._merged(values, self.counts, alphabet)

    @property
    def size(self) -> int:
        """|S|, the number of codes that occur."""
        return len(self.values)

    @property
    def elements(self) -> int:
        """Number of values counted."""
        return int(self.counts.sum())

    @property
    def entropy_bits(self) -> float:
        """H(S), Miller and Madow, bits per element."""
        return miller_madow_bits(self.counts, self.alphabet)

    @property
    def unseen_mass(self) -> float:
        """Good and Turing's share of elements whose code did not occur here."""
        return unseen_mass(self.counts)

    @property
    def lossless_bits(self) -> int:
        """The narrowest fixed-length code that tells all realized codes apart; 1 for a constant."""
        return max(1, (self.size - 1).bit_length())


@dataclass(frozen=True)
class Recoding:
    """What a map into a narrower codebook does to the codes that occur.

    Attributes:
        target_bits: width of the codes it maps to.
        images: how many different codes it reaches.
        injective: whether no two realized codes meet.
        colliding_codes: how many realized codes share their image with another.
        erased_bits: H(X | f(X)), bits per element.
        heldout_unseen: share of held-out elements whose code was not realized before; None without such data.
        heldout_collisions: share of held-out elements whose image belongs to more than one code.
    """

    target_bits: int
    images: int
    injective: bool
    colliding_codes: int
    erased_bits: float
    heldout_unseen: float | None = None
    heldout_collisions: float | None = None

    @property
    def free(self) -> bool:
        """T8, as corrected: injective on what occurred, and on held-out data too."""
        return self.injective and not self.heldout_collisions


def recode(
    book: Codebook, map_codes: Callable[[Tensor], Tensor], target_bits: int, heldout: Codebook | None = None
) -> Recoding:
    """Apply an elementwise map to every realized code.

    Args:
        map_codes: (codes,) values to (codes,) integers: scale, bias, activation, round, as one function.
        heldout: codes of other data, which did not help to choose the map.
    Raises:
        InputError: the map reaches more codes than `target_bits` hold.
    """
    images = map_codes(book.values).to(torch.int64)
    distinct, place, sharers = images.unique(return_inverse=True, return_counts=True)
    if len(distinct) > 2**target_bits:
        raise InputError(f"a map reaches {len(distinct)} codes, but {target_bits} bits hold {2**target_bits}")
    colliding = int((sharers[place] > 1).sum())
    unseen = collisions = None
    if heldout is not None:
        everything = torch.cat([book.values, heldout.values]).unique()
        _, all_place, all_sharers = map_codes(everything).unique(return_inverse=True, return_counts=True)
        where = torch.searchsorted(everything, heldout.values)
        shared = all_sharers[all_place[where]] > 1
        known = torch.isin(heldout.values, book.values)
        unseen = float(heldout.counts[~known].sum()) / max(1, heldout.elements)
        collisions = float(heldout.counts[shared].sum()) / max(1, heldout.elements)
    return Recoding(
        target_bits=target_bits,
        images=len(distinct),
        injective=colliding == 0,
        colliding_codes=colliding,
        erased_bits=lost_bits(book.counts, images),
        heldout_unseen=unseen,
        heldout_collisions=collisions,
    )


def half_histogram(values: Tensor, dtype: torch.dtype) -> Tensor:
    """(65536,) int64: how often each code of a 16-bit float occurs when `values` are stored in it."""
    codes = values.detach().to(dtype).reshape(-1).view(torch.int16).to(torch.int64) & (HALF_CODES - 1)
    return torch.bincount(codes, minlength=HALF_CODES)
