"""Random Hadamard rotations of any size, applied without building the matrix.

Q = D (H ⊗ B) / √n: D flips signs at random, H is Sylvester's Hadamard matrix of a power of two, and B one of Paley's of
order q + 1 or 2 (q + 1) for a prime q (Paley 1933), the smallest that n leaves room for: 576 = 16 · 36, 896 = 32 · 28.
All entries of Q are then ±1/√n, and a single large channel is spread over all n evenly (QuIP#, arXiv:2402.04396;
QuaRot, arXiv:2404.00456). Where there is no such B the odd factor of n gets a random orthogonal matrix, which
spreads a little less evenly.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

AT_ONCE = 2**22
"""Numbers that are turned at a time, in float64."""


@dataclass(frozen=True)
class Rotation:
    """An orthogonal matrix Q of (size, size), the same for the same seed."""

    size: int
    seed: int = 0

    def turn(self, weight: Tensor, dim: int) -> Tensor:
        """Turn all vectors x along a dimension to x Q; where they are longer, each part of `size`.

        Returns:
            The same shape and dtype; computed in float64.
        """
        moved = weight.movedim(dim, -1)
        flat = moved.reshape(-1, self.size)
        turned = torch.cat(
            [self._turned(rows.double()).to(weight.dtype) for rows in flat.split(max(1, AT_ONCE // self.size))]
        )
        return turned.view(moved.shape).movedim(-1, dim).contiguous()

    def matrix(self) -> Tensor:
        """Q, float64."""
        return self._turned(torch.eye(self.size, dtype=torch.float64))

    def _turned(self, rows: Tensor) -> Tensor:
        signs, base = (tensor.to(rows.device) for tensor in self._factors)
        count, inner = len(rows), len(base)
        value = (rows * signs).view(count, -1, inner) @ base
        step = inner
        while step < self.size:
            pairs = value.view(count, -1, 2, step)
            value = torch.stack((pairs[:, :, 0] + pairs[:, :, 1], pairs[:, :, 0] - pairs[:, :, 1]), 2)
            step *= 2
        return value.reshape(count, self.size) / math.sqrt(self.size)

    @cached_property
    def _factors(self) -> tuple[Tensor, Tensor]:
        """Signs (size,) and B, whose rows have length √(their number)."""
        draw = torch.Generator().manual_seed(self.seed)
        signs = 2.0 * torch.randint(0, 2, (self.size,), generator=draw, dtype=torch.float64) - 1
        odd = self.size // (self.size & -self.size)
        order = odd
        while order < self.size:
            if (known := paley(order)) is not None:
                return signs, known
            order *= 2
        if (known := paley(order)) is not None:
            return signs, known
        drawn = torch.randn(odd, odd, generator=draw, dtype=torch.float64)
        return signs, torch.linalg.qr(drawn)[0] * math.sqrt(odd)


def paley(order: int) -> Tensor | None:
    """A Hadamard matrix of this order, float64, from the squares modulo a prime; None where there is none so made."""
    if order in (1, 2):
        return torch.tensor([[1.0, 1.0], [1.0, -1.0]], dtype=torch.float64)[:order, :order]
    if order % 4:
        return None
    if _prime(order - 1) and (order - 1) % 4 == 3:
        return _conference(order - 1) + torch.eye(order, dtype=torch.float64)
    half = order // 2 - 1
    if _prime(half) and half % 4 == 1:
        plus = torch.tensor([[1.0, 1.0], [1.0, -1.0]], dtype=torch.float64)
        alone = torch.tensor([[1.0, -1.0], [-1.0, -1.0]], dtype=torch.float64)
        return torch.kron(_conference(half), plus) + torch.kron(torch.eye(half + 1, dtype=torch.float64), alone)
    return None


def _conference(prime: int) -> Tensor:
    """(prime + 1)², zero on its diagonal, ±1 elsewhere, rows orthogonal; symmetric if prime = 1 modulo 4, else skew."""
    numbers = torch.arange(prime)
    squares = torch.zeros(prime, dtype=torch.bool)
    squares[numbers[1:] ** 2 % prime] = True
    character = torch.where(squares, 1.0, -1.0).double()
    character[0] = 0
    matrix = torch.ones(prime + 1, prime + 1, dtype=torch.float64)
    matrix[0, 0] = 0
    matrix[1:, 1:] = character[(numbers[:, None] - numbers[None, :]) % prime]
    if prime % 4 == 3:
        matrix[1:, 0] = -1
    return matrix


def _prime(number: int) -> bool:
    return number > 2 and all(number % factor for factor in range(2, math.isqrt(number) + 1))
