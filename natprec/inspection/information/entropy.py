"""Entropies from counts, in bits, with what a finite sample hides.

Plug-in entropy is too low by about (m - 1) / 2N nats for m symbols seen in N draws (Miller 1955); the
probability that the next draw is a symbol not seen yet is about the share of symbols seen once (Good 1953).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def entropy_bits(counts: Tensor) -> float:
    """Plug-in entropy of a histogram, bits per draw; 0 where at most one symbol occurs.

    >>> entropy_bits(torch.tensor([1, 1, 2]))
    1.5
    """
    seen = counts[counts > 0].double()
    chances = seen / seen.sum()
    return float(-(chances * chances.log2()).sum()) + 0.0  # never -0.0


def miller_madow_bits(counts: Tensor, symbols: int | None = None) -> float:
    """Plug-in entropy plus (m - 1) / (2 N ln 2), at most log2 of the size of the alphabet.

    Args:
        counts: of the symbols; those that do not occur may be left out.
        symbols: size of the alphabet, if it is finite and known.
    """
    total = int(counts.sum())
    if total == 0:
        return 0.0
    corrected = entropy_bits(counts) + (int((counts > 0).sum()) - 1) / (2 * total * math.log(2))
    return corrected if symbols is None else min(corrected, math.log2(symbols))


def unseen_mass(counts: Tensor) -> float:
    """Good and Turing's estimate of the probability of all symbols that the sample does not hold."""
    total = int(counts.sum())
    return float((counts == 1).sum()) / total if total else 1.0


def lost_bits(counts: Tensor, images: Tensor) -> float:
    """H(X | f(X)) in bits per draw: what a deterministic map erases of a symbol.

    Summed as Σ p(x) log2 (P(f(x)) / p(x)), whose terms are never negative, and not as a difference of
    entropies, which would cancel where f is nearly injective.

    Args:
        counts: (symbols,), how often each x occurs.
        images: (symbols,), integers; which symbols f sends to one value.
    """
    used = counts > 0
    seen = counts[used].double()
    _, place = images[used].unique(return_inverse=True)
    joint = torch.zeros(int(place.max()) + 1 if len(place) else 0, dtype=torch.float64).index_add_(0, place, seen)
    return float((seen * (joint[place] / seen).log2()).sum() / seen.sum()) if len(seen) else 0.0
