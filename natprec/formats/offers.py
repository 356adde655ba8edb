"""What vLLM runs as a checkpoint says it, by GPU: the formats that `--gpu` opens, and what has been seen to load.

A row is here only if the file's arithmetic is the kernel's on those GPUs: packed integers in groups beside 8-bit inputs
are not, since vLLM 0.31 and later leave their inputs at 16 bits, and MXFP4 beside 16-bit inputs is not from sm90 on,
where vLLM rounds them (`natprec.engines.vllm` has the rules, and a test holds the two together).

Sources: vLLM 0.25.1 to 0.33.0 (the wheels' Python), of which `since` is the first that has what a row needs; what plain
transformers loads is from runs of 5.23.0 with compressed-tensors 0.20.0.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from natprec.formats.format import Format
from natprec.formats.gpus import NAMES, capabilities
from natprec.formats.patterns import Integers, Listed, Pattern
from natprec.formats.presets import FLOAT_ACTIVATIONS, FLOAT_WEIGHTS, FP8_TENSOR
from natprec.formats.scaling import PerChannel, PerToken

Role = Literal["linear", "convolution", "head", "embedding", "stream", "cache"]
"""How a tensor is used."""

_ALL, _ODD = tuple(range(2, 9)), (2, 3, 5, 6, 7)
_EVERY = tuple(NAMES)
_FLOAT8 = tuple(each for each in _EVERY if each >= 89)
_BLACKWELL = tuple(each for each in _EVERY if each >= 100)
_BEFORE_100 = tuple(each for each in _EVERY if each < 100)


@dataclass(frozen=True)
class Offer:
    """Formats of weights that an engine runs, alone or beside rounded inputs.

    Attributes:
        what: in words, for plans and documents.
        inputs: None: 16 bits.
        gpus: compute capabilities, ten times, where the kernel does what the file says.
        since: the first version of the engine that loads it.
        portable: whether plain transformers loads it too, 4-bit floats and MXFP8 in bfloat16 alone.
        seen: whether a run of the engine has loaded it: see `SEEN`; 'default': it is a candidate without `--gpu`.
    """

    what: str
    roles: tuple[Role, ...]
    weights: Pattern
    inputs: Pattern | None = None
    gpus: tuple[int, ...] = _EVERY
    since: str = "0.25.1"
    portable: bool = False
    seen: Literal["default", "run", "no"] = "no"

    def runs_on(self, gpu: str) -> bool:
        """On each GPU that this name stands for."""
        return set(capabilities(gpu)) <= set(self.gpus)

    def covers(self, role: str, weight: Format, inputs: Format | None) -> bool:
        """Whether this role's weight beside these inputs is one of it."""
        if role not in self.roles or not self.weights.covers(weight):
            return False
        return inputs is None if self.inputs is None else inputs is not None and self.inputs.covers(inputs)


def _weights(*names: str) -> Listed:
    return Listed(tuple(FLOAT_WEIGHTS[name] for name in names))


def _inputs(*names: str) -> Listed:
    return Listed(tuple(FLOAT_ACTIVATIONS[name] for name in names))


_LINEAR: tuple[Role, ...] = ("linear",)
_BOTH: tuple[Role, ...] = ("linear", "head")
_CHANNELS = (PerChannel,)
_BY_TOKEN = (PerToken,)

VLLM = (
    Offer("symmetric integers", _LINEAR, Integers(_ALL), portable=True, seen="default"),
    Offer("a head of 4 or 8 bits", ("head",), Integers((4, 8)), portable=True, seen="default"),
    Offer("a head of 2, 3, 5, 6 or 7 bits", ("head",), Integers(_ODD), since="0.33.0", portable=True),
    Offer("zero points beside 4 and 8 bits", _BOTH, Integers((4, 8), zero=("code",))),
    Offer("zero points beside 2, 3, 5, 6 and 7 bits", _LINEAR, Integers(_ODD, zero=("code",)), since="0.31.0"),
    Offer("zero points in a head of 2, 3, 5, 6 or 7 bits", ("head",), Integers(_ODD, zero=("code",)), since="0.33.0"),
    Offer("a packed embedding", ("embedding",), Integers((2, 4, 8))),
    Offer("float8 weights", _LINEAR, _weights("fp8-tensor", "fp8-channel", "fp8-block128"), portable=True),
    Offer("float8 weights of a head", ("head",), _weights("fp8-channel"), since="0.33.0", portable=True),
    Offer("NVFP4 weights", _LINEAR, _weights("nvfp4"), portable=True),
    Offer("MXFP4 weights", _LINEAR, _weights("mxfp4"), gpus=(80, 86, 89), portable=True),
    Offer("MXFP8 weights", _LINEAR, _weights("mxfp8"), gpus=_BEFORE_100, portable=True),
    Offer(
        "W8A8 in integers", _LINEAR, Integers((8,), _CHANNELS), Integers((8,), _BY_TOKEN, flowing=True),
        gpus=_BEFORE_100, portable=True, seen="default",
    ),
    Offer(
        "packed integers by row beside 8-bit inputs", _LINEAR,
        Integers(_ODD, _CHANNELS), Integers((8,), _BY_TOKEN, flowing=True),
        gpus=(*_BEFORE_100, 120, 121), since="0.26.0", portable=True, seen="default",
    ),
    Offer(
        "2 and 3 bits beside 4-bit inputs", _LINEAR,
        Integers((2, 3), least=64), Integers((4,), _BY_TOKEN, flowing=True),
        gpus=(75, 80, 86, 89), since="0.26.0", portable=True, seen="default",
    ),
    Offer("float8 beside float8 by token", _LINEAR, _weights("fp8-channel"), _inputs("fp8-token"), _FLOAT8),
    Offer("float8 beside float8 by tensor", _LINEAR, _weights("fp8-tensor"), _inputs("fp8-tensor"), _FLOAT8),
    Offer(
        "float8 in blocks beside float8 in groups", _LINEAR, _weights("fp8-block128"), _inputs("fp8-g128"),
        tuple(each for each in _FLOAT8 if each >= 90),
    ),
    Offer("NVFP4 beside NVFP4", _LINEAR, _weights("nvfp4"), _inputs("nvfp4"), _BLACKWELL),
    Offer("MXFP4 beside MXFP4", _LINEAR, _weights("mxfp4"), _inputs("mxfp4"), _BLACKWELL),
    Offer("MXFP8 beside MXFP8", _LINEAR, _weights("mxfp8"), _inputs("mxfp8"), _BLACKWELL),
    Offer("a float8 cache", ("cache",), Listed((FP8_TENSOR,)), portable=True, seen="default"),
)  # fmt: skip
"""Of vLLM, each with what loads it."""

OFFERS = {"vllm": VLLM}
"""Engine → what it runs by GPU; the other engines' formats do not depend on one."""


@dataclass(frozen=True)
class Seen:
    """A run of an engine that loaded a checkpoint and computed what it says."""

    engine: str
    version: str
    date: str
    gpu: str
    what: str


SEEN = (Seen("vllm", "0.25.1", "2026-11-28", "sm90", "symmetric integers of 2, 3, 4, 5 and 6 bits in groups"),)
"""All runs; docs/engines.md has the same list."""


def offered(engine: str, gpu: str, untested: bool, portable: bool) -> list[Offer]:
    """What an engine runs on a GPU, of what has been seen to load or is wanted in spite of that."""
    return [
        offer
        for offer in OFFERS[engine]
        if offer.runs_on(gpu) and (untested or offer.seen != "no") and (offer.portable or not portable)
    ]


def offer_of(engine: str, role: str, weight: Format, inputs: Format | None) -> Offer | None:
    """Of a weight and its inputs, on whatever GPU."""
    return next((offer for offer in OFFERS.get(engine, ()) if offer.covers(role, weight, inputs)), None)


def first_gpu(engine: str, fits: Callable[[Offer], bool]) -> str:
    """From which generation on an engine runs what fits, for errors; empty: on none."""
    found = [offer.gpus for offer in OFFERS.get(engine, ()) if fits(offer)]
    if not found:
        return ""
    gpus = sorted({capability for each in found for capability in each})
    beyond = [each for each in _EVERY if each >= gpus[0]]
    names = ", ".join(f"sm{each}" for each in gpus)
    return f"from sm{gpus[0]} on" if gpus == beyond else f"on {names}"
