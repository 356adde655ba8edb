"""From gathered gradients to numbers: the sums that turn E[g²] and δ(b)² into a distortion.

Each function takes what an observer gathered at one site and contracts it with the errors of all formats at once.

The diagonal form ½ E[Σ g² δ²] is the mean of the directional one, ½ E[(Σ g δ)²], over errors of random sign. For the
errors that a weight really has the two differ, little where the gradients point in many directions, by any factor
where in few: their ratio is like χ²_r / r with r = tr(M)² / tr(M²), M = E[g gᵀ] weighted by |δ|. The directional form
from N gradients is off like χ²_N / N. `Product.alignment` is what both together say of that ratio: the mean of their
logarithms, weighted by these variances. It is near 1 where r is large.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from natprec.formats import Format
from natprec.measurement.gradient_rows import RowSamples
from natprec.measurement.sharding import Sharding
from natprec.quantizers import Extent, rounding_errors, squared_errors
from natprec.utils.launches import fetched, portion
from natprec.utils.workers import Workers

CONTRACT_VALUES = 1 << 21
"""Gathered values contracted at a time: so few that they stay in the cache."""

EVERY = 4
"""One in so many rows tells how many directions the gradients have."""

OUTWEIGHS = 1e4
"""Times the median energy of the others' gradients: from there on a token's own says nothing of other rows."""

SHORT = 1 / 8
"""Of the median length of rows: nor does that of a token whose row is shorter."""

ROWS_VALUES = 1 << 18
"""Weights rounded at a time where there are no gradients beside them."""


@dataclass(frozen=True)
class Product:
    """The product of a weight's gradients with its rounding errors.

    Attributes:
        values: (pools, formats + 1), Σ_ij g_ij² · δ_ij², float64; last: stored unquantized.
        energy: (pools,), Σ_ij g_ij².
        alignment: (formats,), by which `values` are multiplied for the errors that the weight really has.
    """

    values: Tensor
    energy: Tensor
    alignment: Tensor


@dataclass(frozen=True)
class Sums:
    """What this process found of a `Product`, float64, where the weight is: see `products`.

    Attributes:
        values: (pools, formats + 1), Σ g² δ².
        energy: (pools,), Σ g².
        along: (pools, formats + 1), Σ g δ; zero if not known.
        gram: (pools, pools), products of the pools' gradients, weighted by |δ|.
    """

    values: Tensor
    energy: Tensor
    along: Tensor
    gram: Tensor


def contract(
    gathered: Tensor,
    weight: Tensor,
    formats: Sequence[Format],
    scale_dtype: torch.dtype,
    *,
    squared: bool,
    count: int | None = None,
    sharding: Sharding | None = None,
    wire: torch.dtype | None = None,
) -> Product:
    """Meet the errors of every format; `gathered` is overwritten: see `summed`."""
    sharding = sharding or Sharding.alone(count or len(gathered))
    found = summed(
        gathered, weight, formats, scale_dtype, squared=squared, count=count, sharding=sharding, wire=wire
    )  # fmt: skip
    return products([found], sharding.workers)[0]


def summed(
    gathered: Tensor,
    weight: Tensor,
    formats: Sequence[Format],
    scale_dtype: torch.dtype,
    *,
    squared: bool,
    sharding: Sharding,
    count: int | None = None,
    wire: torch.dtype | None = None,
    errors: Tensor | None = None,
) -> Sums:
    """Meet the errors of every format, without waiting for the device.

    Args:
        gathered: (pools, rows, columns), gradients; or, `squared`, sums of squared gradients, which know no directions.
            They are overwritten.
        count: pools of all processes; default: as many as in `gathered`.
        sharding: `gathered` is of this process's pools; each process contracts some of the rows.
        wire: a dtype in which all of `gathered` is exact, at all processes; default: its own.
        errors: (formats + 1, rows, columns), of the weight, if they are known; they are overwritten.
    """
    count, columns, device = count or len(gathered), weight.shape[1], weight.device
    shapes = (count, len(formats) + 1), (count,), (count, len(formats) + 1), (count, count)
    values, energy, along, gram = (torch.zeros(shape, dtype=torch.float64, device=device) for shape in shapes)
    step = max(
        1, portion(CONTRACT_VALUES, device) // ((count if device.type == "cpu" else count + len(formats)) * columns)
    )
    extent = Extent.of(weight, formats) if errors is None else None
    for own, rows in sharding.by_rows(gathered, count, step, wire):
        part = slice(own.start, own.stop)
        if extent is not None:
            delta = rounding_errors(weight[part], formats, scale_dtype, extent.at(part))
        else:
            assert errors is not None
            delta = errors[:, part].flatten(1)
        chunk = rows.reshape(count, -1)
        if not squared:
            along += chunk @ delta.T
            sizes = delta[len(formats) // 2].view(-1, columns)[::EVERY].abs()
            some = (rows[:, ::EVERY] * sizes).flatten(1)
            gram += some @ some.T
            chunk.square_()
        values += chunk @ delta.square_().T
        energy += chunk.sum(1)
    return Sums(values, energy, along, gram)


def products(sums: Sequence[Sums], workers: Workers) -> list[Product]:
    """Of several weights what all processes found together; one copy from the device for all of them."""
    if not sums:
        return []
    flat = fetched([part for each in sums for part in (each.values, each.energy, each.along, each.gram)])
    found = workers.all_sum(*flat)
    return [
        Product(values, energy, _alignment(along, values, gram)[:-1])
        for values, energy, along, gram in zip(*(found[part::4] for part in range(4)), strict=True)
    ]


def _alignment(along: Tensor, values: Tensor, gram: Tensor) -> Tensor:
    """(formats + 1,): see the head of this file.

    Args:
        along: (pools, formats + 1), Σ g δ; zero if not known.
        values: (pools, formats + 1), Σ g² δ².
        gram: (pools, pools), products of the pools' gradients, weighted by |δ|.
    """
    own = gram.diagonal()
    count, among = len(gram), gram.square().sum() - own.square().sum()
    if count < 2 or among <= 0:
        return torch.ones(values.shape[1], dtype=torch.float64)
    directions = own.mean().square() / (among / (count * (count - 1)))
    unequal = own.square().mean() / own.mean().square() / (1 + 2 / directions)  # 1 if all are drawn alike
    gradients = count / unequal.clamp_min(1)
    ratio = torch.where(values.sum(0) > 0, along.square().sum(0) / values.sum(0), 1.0).clamp_min(1e-9)
    return shrunk(ratio, directions, gradients)


def shrunk(ratio: Tensor, directions: Tensor, gradients: Tensor) -> Tensor:
    """The directional form's ratio to the diagonal one, by all that is known of it: see the head of this file.

    Args:
        ratio: as it was found, from so many `gradients`, (); `directions`: of the gradients, ().
    """
    expected, before = _log_chi_square(directions)
    bias, scatter = _log_chi_square(gradients)
    weight, seen = 1 / before, 1 / scatter
    return torch.exp(
        (weight * expected + seen * (ratio.log() - bias) + 0.5) / (weight + seen)
    )  # 0.5: the mean's, not the median


def _log_chi_square(degrees: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance of log(χ²_k / k)."""
    half = degrees / 2
    return torch.special.digamma(half) - half.log(), torch.special.polygamma(1, half)


def rounding_distortions(samples: Sequence[tuple[RowSamples, Sequence[Format]]], sharding: Sharding) -> list[Tensor]:
    """‖∇ - Q(∇)‖² of each sequence's gradient, from a sample of its rows (T3): of each weight (sequences, formats).

    Args:
        samples: of each weight, and its formats.
    """
    results = [torch.zeros(sharding.total, len(formats), dtype=torch.float64) for _, formats in samples]
    known = {number: kept.together() for number, (kept, _) in enumerate(samples) if kept.rows}
    alike: dict[tuple[object, ...], list[int]] = {}
    for number, rows in known.items():
        formats = tuple(samples[number][1])
        apart = None if all(fmt.by_row for fmt in formats) else number  # then scales are of a sample as a whole
        alike.setdefault((rows.shape[1], rows.device, formats, apart), []).append(number)
    lost = fetched([_row_losses([known[number] for number in some], samples[some[0]][1]) for some in alike.values()])
    for some, errors in zip(alike.values(), lost, strict=True):
        for number, own in zip(some, errors.split([len(known[number]) for number in some], 1), strict=True):
            owner, standing = samples[number][0].owners()
            results[number].index_add_(0, owner, (own * standing).T)
    return sharding.workers.all_sum(*results) if results else []


def _row_losses(several: Sequence[Tensor], formats: Sequence[Format]) -> Tensor:
    """(formats, all rows), the squared errors of sampled rows, (rows, columns) each."""
    rows = torch.cat(tuple(several)) if several[1:] else several[0]
    return squared_errors(rows, formats, torch.float32)[:-1].view(len(formats), *rows.shape).sum(2)


@dataclass
class Lookup:
    """Gradients at the rows of an embedding that one sequence touched."""

    rows: Tensor  # (touched,), int64
    counts: Tensor  # (touched,), occurrences
    own: Tensor  # (touched, columns): gradient through the lookup, squared
    joint: Tensor  # (touched, columns): own plus twice its product with the head's gradient


def lookup_values(
    lookups: dict[int, Lookup],
    weight: Tensor,
    formats: Sequence[Format],
    scale_dtype: torch.dtype,
    terms: int,
    sharding: Sharding,
) -> Tensor:
    """Distortion per term through an embedding's lookups: (sequences, formats + 1), float64.

    Rows that the text never touched are unknown, not free. A share m of the positions of other text
    holds unseen tokens (Good 1953: m = tokens seen once / tokens); each costs what a token seen once
    cost here, with the rounding errors of the unseen rows. Seen rows keep the share 1 - m. Where
    no token was seen once, one position counts as if, at the cost of an occurrence of the rarest.

    A row of zeros (an untrained token, padding) is scaled up by the norm behind it, by 1/√eps: its squared gradient is
    up to 10⁹ times the others', though where nothing is to be rounded. Such a token is no example of what others cost.
    """
    workers = sharding.workers
    counts = torch.zeros(weight.shape[0], dtype=torch.int64, device=weight.device)
    for lookup in lookups.values():
        counts[lookup.rows] += lookup.counts
    seen = counts.nonzero().squeeze(1)  # by this process's sequences
    (counts,) = workers.all_sum(counts)
    position = torch.full_like(counts, -1)
    position[seen] = torch.arange(len(seen), device=weight.device)
    columns = weight.shape[1]
    values = torch.zeros(sharding.total, len(formats) + 1, dtype=torch.float64)
    single = torch.zeros(columns, dtype=torch.float64, device=weight.device)
    rarest, extent = counts[counts > 0].min(), Extent.of(weight, formats)  # 1, unless the text repeats itself
    examples = _examples(lookups, counts == rarest, weight, sharding)
    if lookups:
        errors = squared_errors(weight[seen], formats, scale_dtype, extent.at(seen)).view(-1, len(seen), columns)
    for sequence, lookup in lookups.items():
        at = position[lookup.rows]
        values[sequence] = torch.einsum("rc,krc->k", lookup.joint, errors[:, at]).cpu().double() / (2 * terms)
        single += lookup.own[examples[lookup.rows]].sum(0)
    singles = int((counts == rarest).sum())
    others = (counts == 0).nonzero().squeeze(1)
    chunks = others.split(max(1, ROWS_VALUES // columns)) if len(others) else ()
    typical = torch.zeros(len(formats) + 1, columns, dtype=torch.float64, device=weight.device)
    for number in workers.share(len(chunks)):
        chunk = squared_errors(weight[chunks[number]], formats, scale_dtype, extent.at(chunks[number]))
        typical += chunk.view(len(typical), -1, columns).sum(1)
    values, single, typical = workers.all_sum(values, single.cpu(), typical.cpu())
    if len(others) == 0:
        return values
    tokens = int(counts.sum())
    mass = (singles if rarest == 1 else 1) / tokens
    unseen = mass * (tokens / (sharding.total * terms))  # positions per term of a sequence
    per_occurrence = (typical / len(others)) @ (single / (int(examples.sum()) * rarest.cpu())) / 2
    return (1 - mass) * values + unseen * per_occurrence


def _examples(lookups: dict[int, Lookup], rare: Tensor, weight: Tensor, sharding: Sharding) -> Tensor:
    """(vocabulary,), which of the rare rows tell what a row that was not seen would cost: no outlier does."""
    lengths = weight.norm(dim=1)
    energy = torch.zeros(len(rare), dtype=torch.float64, device=rare.device)
    for lookup in lookups.values():
        energy.index_add_(0, lookup.rows, lookup.own.sum(1).double())
    (energy,) = sharding.workers.all_sum(energy)
    alike = rare & (lengths >= SHORT * lengths.median())
    alike = alike if alike.any() else rare
    return alike & (energy <= OUTWEIGHS * energy[alike].median())
