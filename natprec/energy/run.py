"""What a run has seen: its windows and what they are of. All figures follow from it, then or in a later replay."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

from natprec.config import ROOM_KELVIN
from natprec.energy.convert import Prices, Tariff
from natprec.energy.counters.base import Description
from natprec.energy.footprint import Footprint
from natprec.energy.series import CounterFault, Series
from natprec.energy.window import JUMP, Window
from natprec.errors import InputError
from natprec.utils.options import positive
from natprec.utils.own_files import ENERGY, read_json
from natprec.utils.schema import Above0, Among, From0, Place, Positive, Seed, Within, read

VERSION = 1

PHASES = ("prefill", "decode", "steady")
"""`steady`: a server that reads and writes for as many requests as it was given at once."""


@dataclass(frozen=True)
class Part:
    """One phase of one model at one batch.

    Attributes:
        of: checkpoint, original or server.
        arithmetic: what the weights are: codes, bfloat16 …
        choice_bits: entropy of the next token.
        erased_bits: of activations, for each token, at the plan's boundaries.
    """

    of: str
    phase: Annotated[str, Among(PHASES)]
    batch: Positive
    prompt_tokens: Positive
    new_tokens: Positive
    windows: tuple[Window, ...]
    arithmetic: str = ""
    footprint: Footprint | None = None
    choice_bits: From0 | None = None
    erased_bits: From0 | None = None


@dataclass(frozen=True)
class Machine:
    """Where it ran; no host, user or path.

    Attributes:
        gpu: None: the work was done by the CPU.
        limit_watts: the GPU's power limit.
    """

    cpu: str
    threads: Positive
    gpu: str | None = None
    uuid: str | None = None
    driver: str | None = None
    limit_watts: Above0 | None = None


@dataclass(frozen=True)
class Run:
    """A finished run.

    Attributes:
        idle: `measured`, `ignore`, or the watts that the user gave; `idle_windows`: model → nothing but waiting.
        counter: what the joules of the windows come from; None: from nothing.
        absent: why there are none, one sentence for each counter.
    """

    model: str
    model_digest: str | None
    base_model: str | None
    date: str
    versions: dict[str, str]
    machine: Machine
    idle: str
    min_seconds: Above0
    seed: Seed
    parts: tuple[Part, ...]
    idle_windows: dict[str, Window] = field(default_factory=dict)
    counter: Description | None = None
    absent: tuple[str, ...] = ()
    kelvin: Above0 = ROOM_KELVIN
    tariff_per_kwh: From0 | None = None
    currency: str | None = None
    grid_grams: From0 | None = None
    pue: Annotated[float, Within(1)] = 1.0

    @property
    def prices(self) -> Prices:
        """What the user said of the place."""
        tariff = None
        if self.tariff_per_kwh is not None and self.currency is not None:
            tariff = Tariff(self.tariff_per_kwh, self.currency)
        return Prices(tariff, self.grid_grams, self.pue)

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)

    @classmethod
    def load(cls, path: str | Path) -> Run:
        """The run inside an energy.json, for a replay.

        Raises:
            InputError: missing, changed, none, or one that contradicts itself; names the field.
        """
        path = Path(path)
        place = ENERGY.place(path)
        value = read_json(path, ENERGY, (VERSION,))
        run: Run = read(cls, value.get("run"), place.within("run"))
        _refuse_impossible(run, place.within("run"))
        return run


def with_series(run: Run, series: Series, counter: Description, strict: bool) -> Run:
    """The run with the joules of its windows from a counter's samples.

    Args:
        strict: a fault of any window is the user's to mend; else the window says what was wrong, and has no joules.
    Raises:
        InputError: strict, and the samples do not give a window's energy.
    """

    def filled(window: Window) -> Window:
        try:
            if strict and abs(window.drift) > max(JUMP, 0.01 * window.seconds):
                raise CounterFault(f"this machine's clock jumped by {window.drift:+.2f} s inside a window")
            return replace(window, joules=series.between(window.start, window.stop).joules, fault=None)
        except CounterFault as error:
            if strict:
                raise InputError(f"counter {counter.name!r}: {error}; record the run again") from error
            return replace(window, joules=None, fault=str(error))

    parts = tuple(replace(part, windows=tuple(map(filled, part.windows))) for part in run.parts)
    idle = {of: filled(window) for of, window in run.idle_windows.items()}
    return replace(run, parts=parts, idle_windows=idle, counter=counter, absent=())


def with_fault(run: Run, reason: str, counter: Description) -> Run:
    """The run whose counter failed: no window has joules."""
    parts = tuple(
        replace(part, windows=tuple(replace(each, joules=None, fault=reason) for each in part.windows))
        for part in run.parts
    )
    idle = {of: replace(window, joules=None, fault=reason) for of, window in run.idle_windows.items()}
    return replace(run, parts=parts, idle_windows=idle, counter=counter, absent=())


def _refuse_impossible(run: Run, place: Place) -> None:
    """Stop at windows of no time or tokens, and at an idle power that is none."""
    if not run.parts:
        raise place.wrong("has no parts")
    for part in run.parts:
        if not part.windows:
            raise place.wrong(f"has no windows of {part.phase} at batch {part.batch}")
    for window in (*(each for part in run.parts for each in part.windows), *run.idle_windows.values()):
        if window.stop <= window.start:
            raise place.wrong(f"has a window of {window.seconds:g} s")
    if not all(window.tokens for part in run.parts for window in part.windows):
        raise place.wrong("has a window without tokens")
    if run.idle not in ("measured", "ignore"):
        try:
            positive("idle", float(run.idle))
        except ValueError as error:
            raise place.within("idle").unlike(run.idle, "measured, ignore or watts") from error
