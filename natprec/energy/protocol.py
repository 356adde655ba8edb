"""The whole of a run: load, warm up, wait with the model in memory, then prefill and decode at each batch.

Every window lasts at least `min_seconds`, and a row has at least five. One model is in memory at a time.
"""

from __future__ import annotations

import contextlib
import functools
import platform
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from importlib.metadata import version
from typing import Any

import torch

from natprec.energy.convert import Prices
from natprec.energy.counters import Counter, Found
from natprec.energy.counters.nvml import gpu_facts
from natprec.energy.footprint import footprint
from natprec.energy.opening import Opened, open_model, refuse_other_sizes, sizes_on_disk, threads
from natprec.energy.recorder import Clock, Recorder
from natprec.energy.result import LEAST_WINDOWS
from natprec.energy.run import Machine, Part, Run, with_fault, with_series
from natprec.energy.series import LEAST_STEPS, CounterFault
from natprec.energy.window import LEAD, Pace, Window, cut_windows, idle_window
from natprec.energy.work import Decode, Prefill, Shape, bits_of_choice, fitting, prompts
from natprec.errors import InputError
from natprec.models.hub import download
from natprec.models.places import local_path
from natprec.utils.machine import cpu_name
from natprec.utils.progress import Stages
from natprec.utils.records import public_name


@dataclass(frozen=True)
class Settings:
    """What the user asked for, checked.

    Attributes:
        prompt_tokens, new_tokens: None: 512 and 128, or what the model's context leaves.
        repeat: windows of a row, five at least; min_seconds: of each.
        idle: `measured`, `ignore`, or watts.
        erased_bits: of a token's activations at the plan's boundaries, from `natprec inspect`.
    """

    batches: tuple[int, ...] = (1, 4, 16, 64)
    prompt_tokens: int | None = None
    new_tokens: int | None = None
    repeat: int = LEAST_WINDOWS
    min_seconds: float = 5.0
    idle: str = "measured"
    kelvin: float = 300.0
    prices: Prices = field(default_factory=Prices)
    seed: int = 0
    device: str = "cpu"
    trust_remote_code: bool = False
    erased_bits: float | None = None


def measure(
    name: str, base: str | None, settings: Settings, found: Found, stages: Stages, clock: Clock | None = None
) -> Run:
    """Run a checkpoint or model, and the original beside it where one is named.

    Raises:
        InputError: it cannot be loaded, its context is too short, or a log does not cover a window.
    """
    clock = clock or Clock()
    parts: list[Part] = []
    idle: dict[str, Window] = {}
    digests: list[str] = []
    sizes: list[tuple[int, int, int]] = []
    pace = pace_of(settings, found, clock)
    if base is not None:
        _ = local_path(base) or download(base)  # refused now, and not after the checkpoint's minutes
        refuse_other_sizes(sizes_on_disk(name), sizes_on_disk(base))
    with recording(found.live, clock) as recorder:
        for of, each in (("checkpoint", name), *((("original", base),) if base else ())):
            with stages.stage(f"load {public_name(each)}"):
                opened = open_model(each, settings.device, settings.trust_remote_code)
            digests.append(opened.digest)
            sizes.append(opened.sizes)
            refuse_other_sizes(sizes[0], sizes[-1])
            with fitting_memory():
                parts += _parts(opened, of, settings, pace, clock, recorder, idle, stages)
            del opened
    run = describe(name, settings, parts, idle, machine_of(settings.device), found)
    run = replace(run, model_digest=digests[0], base_model=None if base is None else public_name(base))
    return filled(run, found, recorder)


def _parts(
    opened: Opened,
    of: str,
    settings: Settings,
    pace: Pace,
    clock: Clock,
    recorder: Recorder | None,
    idle: dict[str, Window],
    stages: Stages,
) -> list[Part]:
    runnable, parts = opened.runnable, []
    prompt, new = fitting(runnable, settings.prompt_tokens, settings.new_tokens)
    with stages.stage(f"warm up the {of}"):
        bits = bits_of_choice(runnable, settings.seed)
    if settings.idle == "measured":
        with stages.stage(f"idle, the {of} in memory"):
            idle[of] = idle_window(clock, recorder, pace)
    for batch in settings.batches:
        ids = prompts(runnable, Shape(batch, prompt, new), settings.seed)
        decode = Decode(runnable, ids, new)
        own = footprint(runnable.model, runnable.device, decode.cache_bytes())
        for phase, work in (("prefill", Prefill(runnable, ids)), ("decode", decode)):
            with stages.stage(f"{phase} of the {of}, batch {batch}", settings.repeat) as advance:
                windows = cut_windows(work, clock, recorder, pace, functools.partial(advance, ""))
            parts.append(
                Part(of, phase, batch, prompt, new, tuple(windows), opened.arithmetic, own, bits,
                     settings.erased_bits if of == "checkpoint" else None)
            )  # fmt: skip
    return parts


@contextlib.contextmanager
def fitting_memory() -> Iterator[None]:
    """Say which option asked for more memory than there is.

    Raises:
        InputError: names it.
    """
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise InputError("a batch does not fit into the GPU's memory; lower --batch or --prompt-tokens") from error


def pace_of(settings: Settings, found: Found, clock: Clock) -> Pace:
    """What was asked for, or longer windows where a log has few rows."""
    if found.file is None:
        return Pace(settings.repeat, settings.min_seconds)
    spacing = found.file.spacing(clock.now())
    return Pace(settings.repeat, max(settings.min_seconds, (LEAST_STEPS + 2) * spacing), max(LEAD, 2 * spacing))


@contextlib.contextmanager
def recording(counter: Counter | None, clock: Clock) -> Iterator[Recorder | None]:
    """A thread that reads a live counter; None where there is none."""
    if counter is None:
        yield None
        return
    recorder = Recorder(counter, clock).start()
    try:
        yield recorder
    finally:
        recorder.stop()


def filled(run: Run, found: Found, recorder: Recorder | None) -> Run:
    """The run with its joules: a live counter's faults make nulls, a log's are refused."""
    if found.file is not None:
        last = max(window.stop for part in run.parts for window in part.windows)
        return with_series(run, found.file.wait_for(last), found.file.description, strict=True)
    if recorder is None:
        return run
    try:
        recorder.counter.check()
        series = recorder.series()
    except CounterFault as error:
        return with_fault(run, str(error), recorder.counter.description)
    return with_series(run, series, recorder.counter.description, strict=False)


def describe(
    name: str, settings: Settings, parts: list[Part], idle: dict[str, Window], machine: Machine, found: Found
) -> Run:
    """A run as it is kept."""
    prices = settings.prices
    return Run(
        model=public_name(name),
        model_digest=None,
        base_model=None,
        date=datetime.fromtimestamp(time.time(), timezone.utc).isoformat(timespec="seconds"),
        versions={"python": platform.python_version()}
        | {each: version(each) for each in ("natprec", "torch", "transformers")},
        machine=machine,
        idle=settings.idle,
        min_seconds=settings.min_seconds,
        seed=settings.seed,
        parts=tuple(parts),
        idle_windows=idle,
        absent=tuple(f"{each.kind}: {each.reason}" for each in found.absent),
        kelvin=settings.kelvin,
        tariff_per_kwh=None if prices.tariff is None else prices.tariff.per_kwh,
        currency=None if prices.tariff is None else prices.tariff.currency,
        grid_grams=prices.grid_grams,
        pue=prices.pue,
    )


def machine_of(device: str) -> Machine:
    """The machine at hand."""
    facts: dict[str, Any] = {}
    if not device.startswith("cpu"):
        facts = {"gpu": torch.cuda.get_device_name(device)} | gpu_facts(device)
        facts["limit_watts"] = facts.pop("power_limit_watts", None)
    return Machine(cpu_name(), threads(), **facts)
