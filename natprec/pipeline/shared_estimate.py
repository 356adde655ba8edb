"""What a run takes on several processes: computed from the forecast for one, not timed.

Each process holds the model, unless its weights are on disk, and its share of all that grows with the text. It sends
what docs/large-models.md counts. Process 0 alone has the model write text; all else is shared.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from natprec.measurement.curves import LEARNED
from natprec.measurement.gptq_ratio import JUDGING
from natprec.measurement.lookups import JUDGED_LOOKUPS
from natprec.measurement.pools import pools
from natprec.models.weight_sites import Site, site_layer
from natprec.pipeline.pilot import asks_for_pilot
from natprec.quantizers.gptq import SHARE_ROWS
from natprec.rounding.learned import STEPS
from natprec.rounding.pilot import WAYS, pilot_blocks
from natprec.roundings import rounding_named
from natprec.tasks.samples import fitting

if TYPE_CHECKING:
    from natprec.config import QuantizeConfig
    from natprec.measurement.subject import Subject

PROCESSES = (1, 2, 4, 8)

SERIAL = ("text",)
"""Stages that one process does."""

CODE_BYTES = 1.125
"""Of each weight when codes are sent: one, and a float32 scale for a group of 32."""


@dataclass(frozen=True)
class SharedEstimate:
    """A run on several processes, computed.

    Attributes:
        memory_bytes: peak of each process; `sent_bytes`: by each process.
        seconds: of the whole run, without the time that sending takes.
    """

    processes: int
    memory_bytes: int
    seconds: float
    sent_bytes: int


def seconds_shared(seconds: Mapping[str, float], processes: int) -> float:
    """Of the whole run, where stages that are shared take a process's part of their time."""
    return sum(each / (1 if stage in SERIAL else processes) for stage, each in seconds.items())


def most_processes(config: QuantizeConfig, back: int, together: int | None) -> int:
    """For how many processes the sequences that go back are work."""
    return -(-back // (together or fitting(config.length)))


def sent_measuring(
    subject: Subject, config: QuantizeConfig, back: int, parts: int, processes: int, lookups: Sequence[Site] = ()
) -> int:
    """Bytes that each process sends while it measures.

    Args:
        back: sequences that go back; `parts`: kinds of text among them.
        lookups: embeddings that may be rounded by their gradients.
    """
    hidden = getattr(subject.model.config, "hidden_size", 0)
    judges, total = max(1, config.tokens // config.length // JUDGING), 0.0
    for site in _products(subject):
        pool_count = pools(back, parts, site.elements)
        width = subject.segmented.products.itemsize if pool_count == back else 4
        total += width * pool_count * site.elements / processes
        if rounding_named(config.rounding).compensates and site.gptq:
            total += width * judges * min(site.shape[0], SHARE_ROWS) * site.shape[1] / processes
    if rounding_named(config.rounding).compensates:
        total += 4 * 2 * JUDGED_LOOKUPS * sum(site.shape[1] for site in lookups) / processes
        total += summed_bytes(sum(moment_sizes(subject, [*_products(subject), *lookups]).values()), processes)
    total += 4 * back * config.length * hidden * len(subject.segmented.blocks) / processes
    return round((1 - 1 / processes) * total)


def summed_bytes(numbers: int, processes: int) -> float:
    """Of moments that one process gets the sum of: to those that add up a part of the rows, and from these to it."""
    return 8 * (1 + 1 / processes) * numbers


def sent_rounding(subject: Subject, rounding: str, processes: int, lookups: Sequence[Site] = ()) -> int:
    """Bytes that each process sends while it rounds once, and for the pilot of learned rounding.

    Moments go to those that round, codes to all.

    Args:
        lookups: embeddings that are rounded by their gradients.
    """
    if rounding_named(rounding).needs == "nothing":
        return 0
    members = [site for site in _products(subject) if site.gptq]
    total = _sent_by_one_rounding(subject, rounding, members) + _sent_by_one_rounding(subject, "gptq", lookups)
    if asks_for_pilot(rounding, subject):
        tried = [site for site in members if site.segment in pilot_blocks(len(subject.segmented.blocks))]
        total += sum(_sent_by_one_rounding(subject, way, tried) for way in WAYS)
    return round((1 - 1 / processes) * total)


def _sent_by_one_rounding(subject: Subject, rounding: str, members: Sequence[Site]) -> float:
    """Bytes that one process sends to every other one together, of many processes: of these sites, rounded once."""
    moments = 8 * sum(moment_sizes(subject, members).values())
    if rounding == "yaqa":
        moments += 8 * sum(site.shape[0] ** 2 for site in members)
    weights = sum(site.elements for site in members)
    total = moments + CODE_BYTES * weights
    if rounding == LEARNED:  # gradients to the process that moves a weight, and its values to all
        learned = sum(site.elements for site in members if 0 <= site.segment < len(subject.segmented.blocks))
        total += STEPS * 2 * subject.segmented.products.itemsize * learned
    return total


def moment_sizes(subject: Subject, sites: Iterable[Site]) -> dict[str, int]:
    """Fused group → numbers in Σ x xᵀ of its inputs, or of gradients, of those sites where GPTQ can know either."""
    known = [site for site in sites if site.gptq or site.looked_up]
    return {site.fused_group: math.prod(site_layer(subject.model, site).moments) for site in known}


def lookups_of(subject: Subject, config: QuantizeConfig) -> list[Site]:
    """Embeddings that are rounded by their gradients where they get few bits, which they may."""
    formats = subject.candidates(config.profile, config.group_size, config.sites)
    return [site for site in subject.sites if site.looked_up and any(map(site.compensates, formats[site.name]))]


def _products(subject: Subject) -> list[Site]:
    return [site for site in subject.sites if site.role != "embedding" or site.tied]
