"""The options of a run, each once: what it is called, what it may be, what --help says of it.

All else is derived from here: the command line (`natprec.commands.options`), recipes (`natprec.pipeline.recipe`), the
header of a measurement and the fingerprint by which a run is resumed (`Measured`), and the keywords of the Python API.
A new option is a field, its name in `COMMANDS`, and its use. Nothing here imports torch or transformers.
"""

from __future__ import annotations

import operator
import re
from dataclasses import KW_ONLY, dataclass, fields
from pathlib import Path
from typing import Any, Literal

from natprec.costs.choose import BYTES, MINIMIZE
from natprec.errors import InputError, unknown
from natprec.formats import CHANNEL
from natprec.formats.engines import PROFILES, EngineProfile, engine_profile
from natprec.formats.gpus import known as known_gpu
from natprec.formats.offers import OFFERS
from natprec.roundings import HELP as ROUNDING_HELP
from natprec.roundings import ROUNDINGS
from natprec.utils.options import (
    MACHINE,
    METHOD,
    MODEL,
    TARGET,
    TEXT,
    count,
    fraction,
    option,
    options_of,
    positive,
    probability,
    seed,
    sequence,
    tolerance,
)

DISTORTIONS = {
    "kl": "next_token:KL",
    "kl-top10": "next_token:KL_TOP10",
    "loss": "next_token:LOSS",
    "embedding": "feature_distance:EMBEDDING",
    "embedding-cls": "feature_distance:EMBEDDING_CLS",
    "class-kl": "images:CLASS_KL",
    "image-embedding": "images:IMAGE_EMBEDDING",
    "image-features": "images:IMAGE_FEATURES",
    "speech-kl": "speech:SPEECH_KL",
    "component": "component:COMPONENT",
}
"""What a tolerance can be of, and where `natprec.distortions` has it."""

ESTIMATORS = ("fisher", "exact")
ARITHMETIC = ("auto", "bfloat16", "float32")

TRANSFORMS = ("auto", "none", "rotate")
"""`auto`: rescale a fused group's channels where what GPTQ leaves of its distortion falls. `rotate`: rotate first what
can be, then as `auto`."""

SITES = ("weights", "all")
"""What is measured: `all` adds the inputs of Linears, the residual stream, keys and values."""

WEIGHTS = ("auto", "memory", "disk")
"""Where a model's weights are while it is worked on."""

AUTO, NOT_ROUNDED = "auto", "16"
"""Of `activations`: both operands share the tolerance; they, or `kv`, stay as they are."""

MARGIN, ENCODER_MARGIN = 0.15, 0.3
"""Of a tolerance, what a plan keeps back unless told: what plans cost more on kinds of text that were not measured on.
docs/results.md has what five kinds of text cost, beside the bytes; encoders of text differ more between kinds."""

CONFIDENCE = 0.95

EVAL_TOKENS = 4096
"""Held-out tokens where their number is fixed: for a comparison of methods, or an inspection."""

ROOM_KELVIN = 300.0
"""Temperature at which `natprec inspect` erases bits."""

Scope = Literal["model", "site"]


def parse_group_size(text: str) -> int | None:
    """A number, `channel` (one scale per row) or `auto` (None: all sizes that fit compete).

    Raises:
        InputError: anything else.
    """
    if text == "auto":
        return None
    if text == "channel":
        return CHANNEL
    if text.isdigit() and int(text) > 0:
        return int(text)
    raise InputError(f"group size {text!r}: give 32, 64, 128, channel or auto")


def parse_size(text: str | None) -> float | None:
    """Bytes, with a unit or without: MB and GB are decimal, as disks and hubs count, MiB and GiB are not.

    >>> parse_size("90MB"), parse_size("4.5 GiB"), parse_size("9e7")
    (90000000.0, 4831838208.0, 90000000.0)

    Raises:
        InputError: anything else.
    """
    return _bytes("max-size", text, "90MB or 4.5GiB")


def parse_memory(text: str | None) -> float | None:
    """The same, of a GPU's memory.

    >>> parse_memory("24GB")
    24000000000.0

    Raises:
        InputError: anything else.
    """
    return _bytes("gpu-memory", text, "24GB or 22GiB")


def _bytes(name: str, text: str | None, example: str) -> float | None:
    if text is None:
        return None
    found = re.fullmatch(r"\s*(\d+\.?\d*(?:e\+?\d+)?|\.\d+)\s*(?:([kmgt])(i?))?b?\s*", text, re.IGNORECASE)
    if found is None:
        raise InputError(f"{name} {text!r}: give bytes, or a number with its unit, such as {example}")
    number, unit, binary = found.groups()
    step = 1024 if binary else 1000
    return float(number) * step ** (" kmgt".index(unit.lower()) if unit else 0)


@dataclass(frozen=True, kw_only=True)
class Measured:
    """The options that enter a measurement as they are: a part of its header, and compared when a run is resumed.

    Engine, group size, text, distortion and arithmetic enter it too, as what they lead to: formats, token ids, the
    distortion's name and the dtype of products.
    """

    estimator: str = option(
        "fisher", METHOD, "How distortions are estimated: fisher (one sweep) or exact (slow).", choices=ESTIMATORS
    )
    rounding: str = option("gptq", METHOD, ROUNDING_HELP, choices=ROUNDINGS)
    transforms: str = option(
        "auto",
        METHOD,
        "Before rounding: auto rescales channels where that leaves less KL; rotate: Hadamard first; none.",
        choices=TRANSFORMS,
    )
    sites: str = option(
        "weights",
        METHOD,
        "Sites to measure: weights, or all, with inputs of Linears, residual stream, keys and values.",
        choices=SITES,
    )
    seed: int = option(0, METHOD, "Random seed of signs, sampled text and intervals.", check=seed)

    def entering(self) -> dict[str, Any]:
        """These options by name, whatever else the object holds."""
        return {field.name: getattr(self, field.name) for field in fields(Measured)}


@dataclass(frozen=True)
class QuantizeConfig(Measured):
    """What the user asked for: the options of the command line, one to one, but for what concerns its output.

    A Path serves as a name, too.
    """

    model: str = option(
        "", MODEL, "Hub id or id@revision, folder, .gguf file, smollm2-135m or all-minilm-l6-v2.", required=True
    )
    _: KW_ONLY
    component: str | None = option(
        None, MODEL, "Part of a diffusers pipeline to quantize: transformer, unet, vae, text_encoder …"
    )
    device: str = option("cpu", MACHINE, "Device to compute on: cpu, cuda, cuda:1.")
    weights: str = option(
        "auto",
        MACHINE,
        "Where weights are held: memory; disk, one block in memory at a time; auto: disk if the model is too large.",
        choices=WEIGHTS,
    )
    gpu_memory: float | None = option(
        None,
        MACHINE,
        "Maximum memory taken of the GPU, such as 24GB; default: all of it.",
        check=positive,
        parse=parse_memory,
    )
    trust_remote_code: bool = option(False, MACHINE, "Run Python code that comes with the model.")
    eps: float | None = option(
        None,
        TARGET,
        "Maximum KL divergence from the original, in nats per token or image; for encoders ‖e - e'‖² of embeddings, "
        "for a --component ‖o - o'‖²/‖o‖² of its output.",
        check=tolerance,
    )
    bits: float | None = option(
        None, TARGET, "Maximum bits per quantized weight on disk, scales included.", check=positive
    )
    max_size: float | None = option(
        None,
        TARGET,
        "Maximum size of the checkpoint on disk, such as 90MB or 4.5GiB.",
        check=positive,
        parse=parse_size,
    )
    minimize: str = option(
        BYTES,
        TARGET,
        "What the plan for eps is the least of: bytes, decode or prefill (time), or joules.",
        choices=MINIMIZE,
    )
    costs: str | None = option(
        None, TARGET, "Table of costs by natprec costs, TOML; default: natprec's own, else a ROOFLINE.", flag="--costs"
    )
    eps_scope: Literal["model", "site"] = option("model", TARGET, "Whether eps limits the whole model or each site.")
    margin: float | None = option(
        None,
        TARGET,
        f"Part of eps that the plan holds back for text of other kinds; default: {MARGIN:g}, of text encoders "
        f"{ENCODER_MARGIN:g}.",
        check=fraction,
    )
    confidence: float = option(
        CONFIDENCE, TARGET, "Confidence level of the interval that the verdict uses.", check=probability
    )
    eps_bwd: float | None = option(
        None,
        TARGET,
        "Maximum share of each site's gradient energy that rounding may lose, for training on the result.",
        check=positive,
    )
    data: str | None = option(
        None,
        TEXT,
        "Calibration text: .txt, .jsonl, .csv, .parquet or a Hub dataset; default: text that natprec ships. "
        "The model writes half of the tokens; for an encoder that text is half. Of a model of images, a folder.",
    )
    eval_data: str | None = option(
        None, TEXT, "Text, images or prompts to verify on; default: a held-out part of --data."
    )
    prompts: str | None = option(
        None, TEXT, "Prompts or class numbers for a diffusers pipeline, a text file with one a line."
    )
    steps: int | None = option(
        None, TEXT, "Denoising steps of a diffusers pipeline; default: its own number, at most 50.", check=positive
    )
    images: str | None = option(
        None,
        TEXT,
        "Folder of pictures, for the vision tower of a vision-language model, which else stays at 16 bits.",
    )
    text_column: str | None = option(None, TEXT, "Column that holds the text or the conversations.")
    image_size: int | None = option(
        None, TEXT, "Pixels of a side of a pipeline's images; default: the pipeline's own.", check=positive
    )
    tokens: int = option(8192, TEXT, "Number of calibration tokens.", check=positive)
    eval_tokens: int | None = option(
        None,
        TEXT,
        "Number of held-out tokens; default: as many as a clear verdict needs, at most 32,768.",
        check=positive,
    )
    length: int = option(256, TEXT, "Tokens per sequence.", flag="--sequence-length", check=sequence)
    group_size: int | None = option(
        "64",
        METHOD,
        "Weights that share a scale: 32, 64, 128, channel, or auto, where all sizes compete.",
        parse=parse_group_size,
    )
    engine: str = option(
        "vllm", METHOD, f"Engine that will run the checkpoint: {', '.join(PROFILES)}.", choices=PROFILES
    )
    gpu: str | None = option(
        None,
        METHOD,
        "GPU that the engine will run on: h100, sm90, any …; default: only formats that no GPU decides on.",
        check=known_gpu,
    )
    portable: bool = option(False, METHOD, "With --gpu: only formats that plain transformers also loads.")
    untested: bool = option(False, METHOD, "With --gpu: also formats that no run of the engine has loaded.")
    activations: str = option(
        NOT_ROUNDED,
        METHOD,
        "Bits of the inputs of Linears: 16, 8 (W8A8, W4A8 …), 4, or auto, which shares eps between both operands.",
        parse=str,
    )
    kv: str = option(NOT_ROUNDED, METHOD, "Bits of keys and values in the cache: 16, or 8 (float8 in vLLM).", parse=str)
    distortion: str | None = option(
        None, METHOD, f"Distortion that eps limits: {', '.join(DISTORTIONS)}.", choices=DISTORTIONS
    )
    joint: bool = option(
        True,
        METHOD,
        "Predict a plan's joint distortion from one more backward pass; without: the sum over sites.",
        flag="--joint/--no-joint",
    )
    learn_tokens: int = option(
        0,
        METHOD,
        "After rounding, learn codes, scales and norms against the model's output from so many tokens of other text.",
        check=count,
    )
    time: float | None = option(
        None, METHOD, "Maximum minutes of that learning; alone, it takes as much text as fits.", check=positive
    )
    arithmetic: str = option(
        "auto",
        METHOD,
        "Arithmetic of the measurement's matrix products: bfloat16, float32, or auto, the faster one.",
        choices=ARITHMETIC,
    )

    def __post_init__(self) -> None:
        for name in ("model", "data", "eval_data", "images", "prompts", "costs"):
            if isinstance(getattr(self, name), Path):
                object.__setattr__(self, name, str(getattr(self, name)))
        if hasattr(self.seed, "__index__"):  # numpy's whole numbers too, which no file of ours could hold
            object.__setattr__(self, "seed", operator.index(self.seed))

    @property
    def source(self) -> str | None:
        """What samples are made of: a text, a folder of images, or prompts."""
        return self.prompts or self.data

    @property
    def learns(self) -> bool:
        """Whether it asks for learning against the model's end."""
        return bool(self.learn_tokens) or self.time is not None

    @property
    def profile(self) -> EngineProfile:
        """What the engine runs, on the GPU where one is named.

        Raises:
            InputError: the engine's formats do not depend on a GPU, or an option lacks one.
        """
        gpu = self.gpu if self.minimize == BYTES or self.engine in OFFERS else None  # else of costs alone
        return engine_profile(self.engine, gpu, self.untested, self.portable)

    @classmethod
    def of(cls, command: str, model: str, options: dict[str, Any]) -> QuantizeConfig:
        """From keywords of the Python API: those that a command takes.

        Raises:
            InputError: it takes no such option; the message suggests the nearest. Or a value is out of range.
        """
        for name in options:
            if name not in COMMANDS[command]:
                raise unknown(f"option of {command}", name, COMMANDS[command])
        made = cls(model, **options)
        made.check_each()
        return made

    def given(self, command: str) -> dict[str, Any]:
        """The options that a command takes, by name."""
        return {name: getattr(self, name) for name in COMMANDS[command]}

    def check_each(self) -> None:
        """Refuse values that cannot work whatever the others are.

        Raises:
            InputError: an unknown name or a number out of range.
        """
        for name, each in options_of(type(self)).items():
            each.refuse(getattr(self, name))

    def check(self, judged: bool = True, solved: bool = True) -> None:
        """Refuse what cannot work before a model is loaded.

        Args:
            judged: whether held-out tokens are wanted.
            solved: whether a target is.
        Raises:
            InputError: an unknown name, a number out of range, or options that contradict each other.
        """
        self.check_each()
        for name in ("tokens", "eval_tokens") if judged else ("tokens",):
            if getattr(self, name) is not None and getattr(self, name) < self.length:
                flag = OPTIONS[name].flag
                raise InputError(
                    f"{flag.removeprefix('--')} {getattr(self, name)} is less than one sequence of {self.length}; "
                    f"raise {flag} or lower --sequence-length"
                )
        if not solved:
            return
        if self.eps is None and self.bits is None and self.max_size is None:
            raise InputError("nothing to solve for: give --eps (nats per token), --bits or --max-size")
        check_targets(self.eps, self.bits, self.max_size, self.eps_scope, self.activations, self.minimize)


def check_targets(
    eps: float | None,
    bits: float | None,
    max_size: float | None,
    eps_scope: str,
    activations: str,
    minimize: str = BYTES,
) -> None:
    """Refuse targets that contradict each other.

    Raises:
        InputError: names both.
    """
    if activations == AUTO and (bits is not None or max_size is not None):
        raise InputError("activations 'auto' shares a tolerance; with a size give their bits, for example 8")
    if minimize not in MINIMIZE:
        raise unknown("minimize", minimize, MINIMIZE)
    if minimize != BYTES and (bits is not None or max_size is not None):
        raise InputError(
            f"minimize {minimize!r}: a size says already what the plan is the least of; give --eps, or leave one out"
        )
    if eps_scope == "site" and eps is None:
        raise InputError(
            "eps-scope 'site' gives each site the tolerance, and there is none; give --eps, or leave it out"
        )


OPTIONS = options_of(QuantizeConfig)

_MODEL = ("model", "device", "weights", "gpu_memory", "trust_remote_code")
_TARGET = ("eps", "bits", "max_size", "minimize", "costs", "margin", "eps_scope", "eps_bwd")
_TEXT = ("data", "text_column", "tokens", "length")
_PIPELINE = ("component", "prompts", "steps", "image_size")
_GPU = ("gpu", "portable", "untested")
_METHOD = ("group_size", "engine", "estimator", "distortion", "rounding", "transforms", "seed", "arithmetic")

COMMANDS: dict[str, tuple[str, ...]] = {
    "quantize": (
        *_MODEL,
        *_TARGET,
        "confidence",
        *_TEXT,
        "images",
        *_PIPELINE,
        "eval_data",
        "eval_tokens",
        "activations",
        "kv",
        *_METHOD,
        *_GPU,
        "joint",
        "learn_tokens",
        "time",
    ),
    "measure": (*_MODEL, *_TEXT, "images", *_PIPELINE, *_METHOD, *_GPU, "sites"),
    "solve": (*_TARGET, "activations", "kv", *_GPU),
    "apply": (*_MODEL, *_TEXT, "images", *_PIPELINE, "rounding", "learn_tokens", "time", "seed", "arithmetic"),
    "verify": (
        *_MODEL,
        "confidence",
        "eval_data",
        "images",
        *_PIPELINE,
        "text_column",
        "eval_tokens",
        "length",
        "seed",
        "gpu",
    ),
    "check": ("engine", "gpu"),
    "costs": ("engine", "gpu", "device"),
    "compare": (
        "model",
        "trust_remote_code",
        *_TEXT,
        *_PIPELINE,
        "eval_data",
        "eval_tokens",
        "group_size",
        "gpu",
        "seed",
    ),
    "inspect": ("device", "trust_remote_code", "eps_bwd", *_TEXT, "engine", "group_size", "seed"),
    "generate": ("device", "gpu_memory", "trust_remote_code"),
    "serve": ("device", "gpu_memory", "trust_remote_code"),
    "energy": ("device", "trust_remote_code", "seed"),
    "eval": (*_MODEL, "seed"),
    "landscape": ("seed",),
}
"""The options that each command takes, in the order of --help."""
