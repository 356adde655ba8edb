"""The options of a run, each once: what it is called, what it may be, what --help says of it.

All else is derived from here: the command line (`natprec.commands.options`), recipes (`natprec.pipeline.recipe`), the
header of a measurement and the fingerprint by which a run is resumed (`Measured`), and the keywords of the Python API.
A new option is a field, its name in `COMMANDS`, and its use. Nothing here imports torch or transformers.
"""

from __future__ import annotations

import operator
from dataclasses import KW_ONLY, dataclass, fields
from pathlib import Path
from typing import Any, Literal

from natprec.errors import InputError, unknown
from natprec.formats import CHANNEL
from natprec.formats.engines import PROFILES
from natprec.roundings import HELP as ROUNDING_HELP
from natprec.roundings import ROUNDINGS
from natprec.utils.options import (
    METHOD,
    MODEL,
    TARGET,
    TEXT,
    option,
    options_of,
    positive,
    seed,
    sequence,
    steps,
    tolerance,
)

DISTORTIONS = {
    "kl": "next_token:KL",
    "kl-top10": "next_token:KL_TOP10",
    "loss": "next_token:LOSS",
    "embedding": "feature_distance:EMBEDDING",
    "embedding-cls": "feature_distance:EMBEDDING_CLS",
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


@dataclass(frozen=True, kw_only=True)
class Measured:
    """The options that enter a measurement as they are: a part of its header, and compared when a run is resumed.

    Engine, group size, text, distortion and arithmetic enter it too, as what they lead to: formats, token ids, the
    distortion's name and the dtype of products.
    """

    estimator: str = option("fisher", METHOD, "fisher (one sweep) or exact (replay; slow).", choices=ESTIMATORS)
    rounding: str = option("gptq", METHOD, ROUNDING_HELP, choices=ROUNDINGS)
    transforms: str = option(
        "auto",
        METHOD,
        "auto: rescale channels before GPTQ where that leaves less KL; rotate: Hadamard first; none.",
        choices=TRANSFORMS,
    )
    sites: str = option(
        "weights",
        METHOD,
        "weights, or all: inputs of Linears, residual stream, keys and values too.",
        choices=SITES,
    )
    seed: int = option(0, METHOD, "Of random signs, sampled text and intervals.", check=seed)

    def entering(self) -> dict[str, Any]:
        """These options by name, whatever else the object holds."""
        return {field.name: getattr(self, field.name) for field in fields(Measured)}


@dataclass(frozen=True)
class QuantizeConfig(Measured):
    """What the user asked for: the options of the command line, one to one, but for what concerns its output.

    A Path serves as a name, too.
    """

    model: str = option("", MODEL, "Hub id, folder, .gguf file, smollm2-135m or all-minilm-l6-v2.", required=True)
    _: KW_ONLY
    device: str = option("cpu", MODEL, "Where to compute: cpu, cuda, cuda:1.")
    weights: str = option(
        "auto",
        MODEL,
        "memory; disk: one block in memory at a time; auto: disk where it is too large.",
        choices=WEIGHTS,
    )
    trust_remote_code: bool = option(False, MODEL, "Run Python code that comes with the model.")
    eps: float | None = option(
        None, TARGET, "KL to lose, nats per token; of encoders ‖e - e'‖² per text.", check=tolerance
    )
    bits: float | None = option(None, TARGET, "Stored bits per quantized weight, scales included.", check=positive)
    max_size: float | None = option(None, TARGET, "Bytes of the whole checkpoint on disk.", check=positive)
    eps_scope: Literal["model", "site"] = option("model", TARGET, "Share eps over the model, or give it to each site.")
    eps_bwd: float | None = option(
        None,
        TARGET,
        "For training on it: of each site's gradient, the share that its width may lose.",
        check=positive,
    )
    data: str | None = option(
        None, TEXT, "To measure on: .txt, .jsonl, .csv, .parquet, hub dataset; else the model writes it."
    )
    eval_data: str | None = option(None, TEXT, "To judge on; else another part of --data.")
    text_column: str | None = option(None, TEXT, "Column that holds the text, or conversations.")
    tokens: int = option(8192, TEXT, "Calibration tokens.", check=positive)
    eval_tokens: int = option(4096, TEXT, "Held-out tokens.", check=positive)
    length: int = option(256, TEXT, "Tokens per sequence.", flag="--sequence-length", check=sequence)
    group_size: int | None = option(
        "64", METHOD, "32, 64, 128, channel, or auto: all that fit compete.", parse=parse_group_size
    )
    engine: str = option("vllm", METHOD, f"What must run it: {', '.join(PROFILES)}.", choices=PROFILES)
    activations: str = option(
        NOT_ROUNDED,
        METHOD,
        "Bits of the inputs of Linears: 16, 8 (W8A8, W4A8 …), 4, or auto: both operands.",
        parse=str,
    )
    kv: str = option(NOT_ROUNDED, METHOD, "Bits of keys and values in the cache: 16, or 8 (float8 in vllm).", parse=str)
    distortion: str | None = option(None, METHOD, f"What eps is of: {', '.join(DISTORTIONS)}.", choices=DISTORTIONS)
    refine: int = option(
        0, METHOD, "Steps of gradient descent on the scales after rounding; 30 are plenty. Slow.", check=steps
    )
    arithmetic: str = option(
        "auto",
        METHOD,
        "Of products that serve averages: bfloat16, float32, or auto: the faster one.",
        choices=ARITHMETIC,
    )

    def __post_init__(self) -> None:
        for name in ("model", "data", "eval_data"):
            if isinstance(getattr(self, name), Path):
                object.__setattr__(self, name, str(getattr(self, name)))
        if hasattr(self.seed, "__index__"):  # numpy's whole numbers too, which no file of ours could hold
            object.__setattr__(self, "seed", operator.index(self.seed))

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
            if getattr(self, name) < self.length:
                flag = OPTIONS[name].flag
                raise InputError(
                    f"{flag.removeprefix('--')} {getattr(self, name)} is less than one sequence of {self.length}; "
                    f"raise {flag} or lower --sequence-length"
                )
        if not solved:
            return
        if self.eps is None and self.bits is None and self.max_size is None:
            raise InputError("nothing to solve for: give --eps (nats per token), --bits or --max-size")
        check_targets(self.eps, self.bits, self.max_size, self.eps_scope, self.activations)


def check_targets(
    eps: float | None, bits: float | None, max_size: float | None, eps_scope: str, activations: str
) -> None:
    """Refuse targets that contradict each other.

    Raises:
        InputError: names both.
    """
    if activations == AUTO and (bits is not None or max_size is not None):
        raise InputError("activations 'auto' shares a tolerance; with a size give their bits, for example 8")
    if eps_scope == "site" and eps is None:
        raise InputError(
            "eps-scope 'site' gives each site the tolerance, and there is none; give --eps, or leave it out"
        )


OPTIONS = options_of(QuantizeConfig)

_MODEL = ("model", "device", "weights", "trust_remote_code")
_TARGET = ("eps", "bits", "max_size", "eps_scope", "eps_bwd")
_TEXT = ("data", "text_column", "tokens", "length")
_METHOD = ("group_size", "engine", "estimator", "distortion", "rounding", "transforms", "seed", "arithmetic")

COMMANDS: dict[str, tuple[str, ...]] = {
    "quantize": (*_MODEL, *_TARGET, *_TEXT, "eval_data", "eval_tokens", "activations", "kv", *_METHOD, "refine"),
    "measure": (*_MODEL, *_TEXT, *_METHOD, "sites"),
    "solve": (*_TARGET, "activations", "kv"),
    "apply": (*_MODEL, *_TEXT, "rounding", "refine", "seed", "arithmetic"),
    "verify": (*_MODEL, "eval_data", "text_column", "eval_tokens", "length", "seed"),
    "compare": ("model", "trust_remote_code", *_TEXT, "eval_data", "eval_tokens", "group_size", "seed"),
    "inspect": ("device", "trust_remote_code", "eps_bwd", *_TEXT, "engine", "group_size", "seed"),
    "generate": ("device", "trust_remote_code"),
    "energy": ("device", "trust_remote_code", "seed"),
}
"""The options that each command takes, in the order of --help."""
