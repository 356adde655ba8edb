"""The dry run: memory and time before hours are spent, from one batch that is timed through two blocks."""

from __future__ import annotations

import math
import time
from collections import Counter
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

from natprec.evaluation.verdict import FIRST, MOST
from natprec.measurement.block_inputs import SHARE
from natprec.measurement.gptq_ratio import JUDGING
from natprec.measurement.measure import goes_back
from natprec.measurement.pools import pools
from natprec.measurement.spot_check import CHECK_SEQUENCES, CHECK_SITES
from natprec.models.segments import SegmentedModel
from natprec.pipeline.learning_text import WRITTEN
from natprec.pipeline.pilot import STAGE as PILOT
from natprec.pipeline.pilot import asks_for_pilot, pilot_seconds
from natprec.pipeline.samples import calibration_parts, length_of
from natprec.pipeline.shared_estimate import (
    PROCESSES,
    SharedEstimate,
    lookups_of,
    moment_sizes,
    most_processes,
    seconds_shared,
    sent_measuring,
    sent_rounding,
)
from natprec.quantizers.gptq import SHARE_ROWS
from natprec.rounding.rounder import Pace, rounder_named
from natprec.rounding.to_end import STEP_TOKENS
from natprec.roundings import rounding_named
from natprec.tasks import Samples
from natprec.tasks.samples import fitting
from natprec.utils.memory import available_bytes, resident_bytes

if TYPE_CHECKING:
    from natprec.config import QuantizeConfig
    from natprec.measurement.subject import Subject

SWEEP_FORWARDS, SWEEP_BACK = 2.0, 2.0
"""Forward-equivalents of the sweep: forward and recomputed forward; of what also goes back, that."""

CONTRACTION = 0.4
"""What of the sweep is in float32 whatever the products are in, in forwards in float32: rounding, contraction."""

SHARES = 1.4
"""The same of what GPTQ will leave: moments of inputs, factors, trial rounding (measured: 5.8 in all)."""

WRITING = 7.0
"""Forwards that a token costs which the model writes itself, one after the other."""

LEARNING_FORWARDS, LEARNING_STEP = 4.5, 4e-8
"""Of each token that is learned from: the original's forward, the rounded model's and its backward (2), the distortion;
and the seconds in which a weight moves at each step."""

JOINT_FORWARDS, JOINT_READS = 6.0, 4
"""Of the look at a plan, for each token that goes back: forwards with and without the plan's errors, what goes back;
and how often it reads the weights."""

LEARNING_COPIES = 7
"""Of all weights in float32 while they are learned from: the original's, the rounded ones, what was rounded, positions,
gradients and both means of Adam."""

FACTORIZING = 9
"""Bytes per entry of a layer's second moments while they are factorized, beside what they took before."""

WORKING = 150 << 20
"""Bytes of libraries that load later, and what allocators keep (measured on three models: 116 to 220 MB)."""

BLOCKS_TIMED = 2


@dataclass(frozen=True)
class Estimate:
    """Time and memory of a run.

    Attributes:
        model_bytes: all weights in float32.
        memory_bytes: peak resident memory, the model included where it is in memory.
        available_bytes: of memory that is free now, what this process has included.
        disk_bytes: for the inputs of all blocks, if they do not stay in memory.
        seconds: stage → seconds, scaled from a batch through two blocks that was timed here.
        forward_equivalents: forwards of the whole calibration text.
        shared: the same on several processes, computed.
    """

    weights: int
    sites: int
    blocks: int
    formats: int
    model_bytes: int
    memory_bytes: int
    available_bytes: int
    disk_bytes: int
    seconds: dict[str, float]
    forward_equivalents: float
    shared: list[SharedEstimate]


@torch.no_grad()
def estimate(subject: Subject, config: QuantizeConfig, formats: int, judged: bool = True) -> Estimate:
    """Time one batch and scale it.

    Args:
        judged: rounding and verification follow.
    """
    config = replace(config, length=length_of(config, subject))
    size = min(subject.segmented.together or fitting(config.length), max(1, config.tokens // config.length))
    samples = subject.task.made_up(subject.model, size, config.length, config.seed)
    resident = resident_bytes()
    with subject.segmented.judging():
        per_token, reading, output = _timed(subject.segmented, samples)
    with subject.segmented.gathering():
        gathering = min(per_token, _timed(subject.segmented, samples)[0])
    judging = config.eval_tokens or MOST // 2  # between the least and the most that a verdict may need
    own_text = config.tokens // 2 + (0 if config.eval_data or config.data else min(judging // 2, FIRST))
    own_text = own_text if subject.writes else 0
    check = CHECK_SITES * 0.5 + 1
    fitted = rounding_named(config.rounding).compensates
    back = _differentiated(subject, config) * config.length
    lookups = lookups_of(subject, config)
    forwards = SWEEP_FORWARDS * (config.tokens if fitted else back) + SWEEP_BACK * back
    rounder = rounder_named(config.rounding)
    seconds = {
        "text": own_text * per_token * WRITING,
        "measure": forwards * (per_token if config.sites == "all" else gathering)
        + per_token * (CONTRACTION * back + SHARES * config.tokens * fitted)
        + 2 * reading,
        "spot check": CHECK_SEQUENCES * config.length * per_token * check + check * reading,
    }
    if judged:
        if config.joint:
            seconds["joint"] = JOINT_FORWARDS * back * per_token + JOINT_READS * reading
        pace = _pace(subject, config, per_token, gathering, bool(lookups))
        if asks_for_pilot(config.rounding, subject):
            seconds[PILOT] = pilot_seconds(subject, pace)
        seconds |= {
            "round": rounder.seconds(pace),
            "learn": _learning(subject, config, per_token, gathering),
            "verify": 2 * judging * per_token,
        }
    model = sum(4 * parameter.numel() for parameter in subject.model.parameters())
    held = model if subject.segmented.weights.whole else 0
    inputs = 4 * config.tokens * getattr(subject.model.config, "hidden_size", 0) * (len(subject.segmented.blocks) + 1)
    on_disk = inputs * SHARE > available_bytes()

    def memory(processes: int) -> int:
        sweep = _sweep_memory(subject, config, output, processes) + (0 if on_disk else inputs // processes)
        copies = LEARNING_COPIES - 1 if config.learns else 2
        return resident + WORKING + max(sweep, copies * held + 6 * output if judged else 0)

    sequences = _differentiated(subject, config)
    most = most_processes(config, sequences, subject.segmented.together)
    shared = [
        SharedEstimate(
            number,
            memory(number),
            seconds_shared(seconds, number),
            sent_measuring(subject, config, sequences, calibration_parts(config, subject), number, lookups)
            + (sent_rounding(subject, config.rounding, number, lookups) if judged else 0),
        )
        for number in PROCESSES
        if number <= most
    ]
    return Estimate(
        weights=sum(site.elements for site in subject.sites),
        sites=len(subject.sites),
        blocks=len(subject.segmented.blocks),
        formats=formats,
        model_bytes=model,
        memory_bytes=memory(1),
        available_bytes=available_bytes() + resident,
        disk_bytes=inputs if on_disk else 0,
        seconds=seconds,
        forward_equivalents=forwards / config.tokens + (rounder.forwards if judged else 0.0),
        shared=shared,
    )


def _differentiated(subject: Subject, config: QuantizeConfig) -> int:
    """Sequences that also go back."""
    parts = calibration_parts(config, subject)
    sequences = parts * max(1, round(config.tokens / config.length / parts))
    return int(goes_back(sequences, parts, subject.segmented.routed, config.rounding).sum())


def _pace(subject: Subject, config: QuantizeConfig, forward: float, gathering: float, lookups: bool) -> Pace:
    """Of what rounds the model to a plan; times are in seconds per token."""
    alone = lookups and rounding_named(config.rounding).needs == "moments"
    batch = min(config.tokens, fitting(config.length) * config.length)
    moved = sum(site.elements for site in subject.sites if 0 <= site.segment < len(subject.segmented.blocks))
    return Pace(config.tokens, batch, moved, forward, gathering, alone)


def _learning(subject: Subject, config: QuantizeConfig, forward: float, gathering: float) -> float:
    """Seconds of learning against the end; times are in seconds per token."""
    if not config.learns:
        return 0.0
    own = forward * WRITING * WRITTEN if subject.writes else 0.0
    moved = sum(site.elements for site in subject.sites) * LEARNING_STEP
    steps = config.learn_tokens / max(STEP_TOKENS, config.length)
    seconds = config.learn_tokens * (LEARNING_FORWARDS * gathering + own) + steps * moved
    limit = math.inf if config.time is None else 60 * config.time
    return min(seconds or math.inf, limit)


def _timed(segmented: SegmentedModel, samples: Samples) -> tuple[float, float, int]:
    """Seconds per token of a whole forward, seconds of reading all blocks, and the bytes of a batch's output."""
    if not segmented.blocks:
        start = time.perf_counter()
        output = segmented.output(samples)
        return (time.perf_counter() - start) / samples.tokens, 0.0, 4 * output.numel()
    hidden, contexts = segmented.prefix(samples)
    reading = running = 0.0
    timed = min(BLOCKS_TIMED, len(segmented.blocks))
    for index in range(timed):
        start = time.perf_counter()
        with segmented.hold(index):
            read = time.perf_counter()
            hidden = segmented.block(index, hidden, contexts[index])
            reading, running = reading + read - start, running + time.perf_counter() - read
    with segmented.hold(len(segmented.blocks)):
        start = time.perf_counter()
        output = segmented.suffix(hidden, samples)
        suffix = time.perf_counter() - start
    share = len(segmented.blocks) / timed
    return (running * share + suffix) / samples.tokens, reading * share, 4 * output.numel()


def _sweep_memory(subject: Subject, config: QuantizeConfig, output: int, processes: int = 1) -> int:
    """The most that a segment of the sweep takes of each process; `output`: bytes of a batch's logits or the like."""
    segmented, parts = subject.segmented, calibration_parts(config, subject)
    sequences = _differentiated(subject, config)
    batch = min(segmented.together or fitting(config.length), sequences)
    together = Counter(segmented.routing.alike(site.name) for site in subject.sites if site.experts)
    most = 0
    for segment in range(-1, len(segmented.blocks) + 1):
        own = [site for site in subject.sites if segment in {segmented.segment_of(use) for use in site.uses}]
        products = [site for site in own if site.role != "embedding" or (site.tied and segment >= 0)]
        needed = output if segment == len(segmented.blocks) else 0
        if not segmented.weights.whole:
            needed += 4 * sum(site.elements for site in own)
        for site in products:
            peers = together[segmented.routing.alike(site.name)] if site.experts else 1
            pool_count = pools(sequences, parts, site.elements * peers)
            gathered = -(-pool_count // processes) + (batch if pool_count < sequences else 0)
            if processes > 1:  # a weight's gradients are there twice more while they travel
                needed = max(needed, 8 * site.elements * -(-pool_count // processes))
            needed += 4 * site.elements * gathered + 8 * batch * config.length * sum(site.shape)
        if rounding_named(config.rounding).compensates:
            squares = moment_sizes(subject, products)
            judging = sum(min(site.shape[0], SHARE_ROWS) * site.shape[1] for site in products if site.gptq)
            judges = max(1, config.tokens // config.length // JUDGING // processes)
            needed += 8 * sum(squares.values()) + 4 * judges * judging
            needed += FACTORIZING * max(squares.values(), default=0)
        most = max(most, needed)
    return most
