"""The methods that `natprec compare` knows, as data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from natprec.errors import InputError, unknown

PEERS = Path(__file__).parent / "peers"
LEARN_TOKENS = 2**18
"""That `natprec-refined` learns from against the model's output: its peers' text, and the model's own. Methods that are
given more text get as many tokens of the rest of `--data`."""

SIZED_BY = ("gptq", "rtn", "nvfp4a16", "nvfp4")
"""Whose checkpoint is the size that natprec must not exceed: the first of them that succeeded."""

FLOATS = ("nvfp4", "fp8-channel")
"""Formats that AutoQuantize is given to choose from, beside 16 bits; so is `natprec-float`."""


@dataclass(frozen=True)
class Method:
    """One way to quantize a model.

    Attributes:
        peer: file in `peers/`.
        module: what the interpreter must have; `package`: what installs it.
        settings: passed to the peer.
        bits: the only width, where it has just one.
        own: natprec itself.
        sized: it gets the bytes of the uniform checkpoint, and so comes after it.
        more: given `LEARN_TOKENS` of the rest of the text beside the calibration tokens.
        rescales: moves scales between layers, so that weights differ from the original's beyond rounding.
        stored: judged as natprec reads its checkpoint, with inputs rounded as that says, or as the GPU runs it; else
            the process hands its weights over.
    """

    peer: str
    module: str
    package: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    bits: int | None = None
    own: bool = False
    sized: bool = False
    more: bool = False
    rescales: bool = False
    stored: bool = False

    @property
    def file(self) -> Path:
        """The peer's file."""
        return PEERS / f"{self.peer}.py"


def _llm_compressor(recipe: str, rescales: bool = False) -> Method:
    return Method("llmcompressor", "llmcompressor", "llmcompressor", {"recipe": recipe}, rescales=rescales)


def _preset(scheme: str, bits: int) -> Method:
    """A uniform format of llm-compressor by its own name, rounded to nearest."""
    return Method("llmcompressor", "llmcompressor", "llmcompressor", {"scheme": scheme}, bits, stored=True)


def _natprec(engine: str, rounding: str = "gptq", learn_tokens: int = 0, more: bool = False, **kept: Any) -> Method:
    settings = {"engine": engine, "rounding": rounding, "learn_tokens": learn_tokens, **kept}
    return Method("natprec_method", "natprec", "natprec", settings, own=True, sized=True, more=more, rescales=True)


METHODS: dict[str, Method] = {
    "rtn": _llm_compressor("rtn"),
    "gptq": _llm_compressor("gptq"),
    "awq": _llm_compressor("awq", rescales=True),
    "smoothquant": _llm_compressor("smoothquant", rescales=True),
    "autoround": Method("autoround", "auto_round", "auto-round"),
    "autoround-text": Method("autoround", "auto_round", "auto-round", more=True),
    "autoscheme": Method("autoround", "auto_round", "auto-round", {"search": True}),
    "modelopt": Method("modelopt", "modelopt", "nvidia-modelopt"),
    "fp8-dynamic": _preset("FP8_DYNAMIC", 8),
    "nvfp4a16": _preset("NVFP4A16", 4),
    "nvfp4": _preset("NVFP4", 4),
    "mxfp4": _preset("MXFP4", 4),
    "modelopt-float": Method("modelopt", "modelopt", "nvidia-modelopt", {"formats": FLOATS}, bits=4),
    "gptq-whole": Method(
        "llmcompressor", "llmcompressor", "llmcompressor", {"recipe": "gptq", "whole": True}, sized=True
    ),
    "nf4": Method("bitsandbytes", "bitsandbytes", "bitsandbytes", {"kind": "nf4"}, bits=4),
    "int8": Method("bitsandbytes", "bitsandbytes", "bitsandbytes", {"kind": "int8"}, bits=8),
    "natprec": _natprec("vllm"),
    "natprec-refined": _natprec("vllm", "learned", LEARN_TOKENS),
    "natprec-linear": _natprec("vllm", linear=True),
    "natprec-linear-refined": _natprec("vllm", "learned", LEARN_TOKENS, linear=True),
    "natprec-linear-text": _natprec("vllm", "learned", LEARN_TOKENS, more=True, linear=True),
    "natprec-float": _natprec("vllm", "learned", linear=True, formats=FLOATS),
    "natprec-transformers": _natprec("transformers"),
}


def _module(package: str, bits: int | None = None, **options: Any) -> Method:
    return Method("modules", package, package, {"package": package, "options": options}, bits)


def _dynamic(loss: float) -> Method:
    """SDNQ's mixed widths, from 2 bits on: as wide as a weight's own squared error asks for."""
    return _module("sdnq", bits=2, use_dynamic_quantization=True, dynamic_loss_threshold=loss)


OWN = "natprec"
"""Of a model that reads no text, natprec at the bytes of each other method in turn."""

MODULES: dict[str, Method] = {
    "sdnq": _module("sdnq"),
    "sdnq-svd": _module("sdnq", use_svd=True),
    **{f"sdnq-dynamic-{loss:g}": _dynamic(loss) for loss in (1e-2, 3e-3, 1e-3)},
    "nf4": _module("bitsandbytes", bits=4),
    "torchao": _module("torchao"),
    "gguf": _module("gguf"),
    OWN: Method("", "natprec", "natprec", own=True, sized=True),
}
"""For models that read no text: parts of pipelines, image models, speech."""

DEFAULT = "rtn,gptq,awq,smoothquant,autoround,modelopt,nf4,int8,natprec"
"""For models of text; for others all of `MODULES`."""


def parse_methods(text: str, known: Mapping[str, Method]) -> list[str]:
    """Names separated by commas, or `all`; those that need a peer's bytes last, natprec's after all.

    Raises:
        InputError: an unknown name, or none.
    """
    names = list(known) if text == "all" else list(dict.fromkeys(filter(None, map(str.strip, text.split(",")))))
    for name in names:
        if name not in known:
            raise unknown("method", name, known)
    if not names:
        raise InputError(f"methods {text!r} name nothing to compare; known: all, {', '.join(known)}")
    return sorted(names, key=lambda name: (known[name].sized, known[name].own))


def parse_widths(text: str) -> list[int]:
    """Whole numbers of bits separated by commas.

    Raises:
        InputError: none, or not from 2 to 8.
    """
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdigit() and 2 <= int(part) <= 8 for part in parts):
        raise InputError(f"bits {text!r}: give whole numbers from 2 to 8, such as 4 or 3,4")
    return list(dict.fromkeys(map(int, parts)))


def parse_interpreters(given: list[str]) -> dict[str, str]:
    """Method → Python interpreter, from `METHOD=PATH` or `PATH`, which is for all peers (key '').

    Raises:
        InputError: an unknown method, or a path that is no file.
    """
    found = {}
    for text in given:
        name, separator, path = text.rpartition("=")
        if separator and name not in METHODS | MODULES:
            raise unknown("method", name, METHODS | MODULES)
        if not Path(path).is_file():
            raise InputError(f"python {text!r}: {path!r} is no file; give METHOD=PATH or PATH of an interpreter")
        found[name] = str(Path(path).absolute())
    return found
