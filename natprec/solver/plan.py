"""The `Plan`: each site's format, the tolerance that it answers, and what it will weigh."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from natprec.errors import InputError
from natprec.files import write_json
from natprec.formats import GGUF_TYPES, ActivationFormat, GGUFType, NumberFormat
from natprec.formats.activation_format import parse_activation_format
from natprec.staged.routing import MIN_TOKENS

UNQUANTIZED_BITS = 16


@dataclass(frozen=True)
class Choice:
    """One site's format in a plan.

    Attributes:
        format: None where the engine keeps the site at 16 bits.
        natural_bits: b*(eps_v), the width at which the site keeps its own share of the tolerance;
            None where no measured width does.
        kl: predicted distortion of this site alone, by default KL in nats per token.
        stored_bytes: on disk.
        scaled: whether the columns are rescaled before they are rounded (T10).
        backward_bits: b* of the backward flow, at the plan's `eps_bwd` or else 0.01; None where no measured width
            keeps it. What keeps both tolerances is the larger of this and `natural_bits` (T4).
        tokens: of an expert, those that it was measured on; None where the text is not divided.
    """

    format: NumberFormat | None
    natural_bits: int | None
    kl: float
    stored_bytes: int
    elements: int
    unit: str
    scaled: bool = False
    backward_bits: int | None = None
    tokens: int | None = None

    def to_json(self) -> dict[str, Any]:
        """`bits`, `group_size`, `symmetric` and GGUF's `type` first: what scripts read."""
        fmt = self.format
        return {
            "bits": fmt.bits if fmt else UNQUANTIZED_BITS,
            "group_size": fmt.group_size if fmt else None,
            "symmetric": fmt.symmetric if fmt else None,
            "type": fmt.name if isinstance(fmt, GGUFType) else None,
            "natural_bits": self.natural_bits,
            "backward_bits": self.backward_bits,
            "dual_bits": dual(self.natural_bits, self.backward_bits),
            "kl": self.kl,
            "stored_bytes": self.stored_bytes,
            "elements": self.elements,
            "unit": self.unit,
            "scaled": self.scaled,
            "tokens": self.tokens,
        }

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Choice:
        """The inverse of `to_json`."""
        fmt: NumberFormat | None = None
        if value["type"] is not None:
            fmt = GGUF_TYPES[value["type"]]
        elif value["group_size"] is not None:
            fmt = NumberFormat(value["bits"], value["group_size"], value["symmetric"])
        names = ("natural_bits", "kl", "stored_bytes", "elements", "unit", "scaled", "backward_bits", "tokens")
        return cls(fmt, *(value[name] for name in names))


def dual(forward: int | None, backward: int | None) -> int | None:
    """The fewest bits that keep both tolerances (T4)."""
    return None if forward is None or backward is None else max(forward, backward)


@dataclass(frozen=True)
class InputChoice:
    """The format in which a unit's input meets its weights; attributes as those of `Choice`, None: 16 bits."""

    format: ActivationFormat | None
    natural_bits: int | None
    kl: float
    backward_bits: int | None = None

    @property
    def bits(self) -> int:
        """Of an activation."""
        return self.format.bits if self.format else UNQUANTIZED_BITS

    def to_json(self) -> dict[str, Any]:
        """`bits` first, as for weights."""
        return {
            "bits": self.bits,
            "format": self.format.name if self.format else None,
            "natural_bits": self.natural_bits,
            "backward_bits": self.backward_bits,
            "dual_bits": dual(self.natural_bits, self.backward_bits),
            "kl": self.kl,
        }

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> InputChoice:
        """The inverse of `to_json`."""
        fmt = None if value["format"] is None else parse_activation_format(value["format"])
        return cls(fmt, value["natural_bits"], value["kl"], value["backward_bits"])


@dataclass(frozen=True)
class CacheChoice:
    """The format of all keys and values.

    Attributes:
        kl: predicted distortion of all of them together.
        largest: site → the largest magnitude measured, for formats with a fixed scale.
    """

    format: ActivationFormat
    kl: float
    largest: dict[str, float]

    def to_json(self) -> dict[str, Any]:
        """`bits` first, as for weights."""
        return {"bits": self.format.bits, "format": self.format.name, "kl": self.kl, "largest": self.largest}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> CacheChoice:
        """The inverse of `to_json`."""
        return cls(parse_activation_format(value["format"]), value["kl"], value["largest"])


@dataclass(frozen=True)
class Plan:
    """Site → format.

    Attributes:
        eps: the tolerance promised for the whole model; None for a size target.
        eps_solved: the tolerance the solver worked with: a little less than `eps`, less still after a correction.
        eps_scope: 'model' or 'site'.
        rounding: 'gptq', 'yaqa', 'learned' or 'rtn', with which `kl_predicted` was measured.
        kl_predicted: of all sites together; the unit of this and of `eps` is that of `distortion`.
        stored_bytes: forecast of the whole checkpoint on disk; `stored_bytes_reference`: of the same
            folder with 16-bit weights.
        uniform: the best single format for all Linear weights that stores no more; `kl_uniform`: predicted for
            it, all else as in this plan. If that is as good as mixed widths, this plan is that one.
        activations: bits asked for of Linears' inputs, or 'auto'; `inputs`: unit → what its input got.
        eps_bwd: of each gradient's energy, the share that rounding it may lose; None: any.
        cache: of keys and values; None: 16 bits.
        distortion: name of what is kept small: 'kl' (nats per token) or another of `natprec.distortions`.
        rotation: the seed by which the model has to be rotated first, which `model_digest` knows of; None: not at all.
    """

    model: str
    model_digest: str
    engine: str
    storage_dtype: str
    eps: float | None
    eps_solved: float | None
    eps_scope: str
    rounding: str
    kl_predicted: float
    kl_predicted_ci95: tuple[float, float]
    stored_bytes: int
    stored_bytes_reference: int
    bits_per_weight: float
    bits_per_weight_total: float
    sites: dict[str, Choice]
    distortion: str = "kl"
    uniform: str | None = None
    kl_uniform: float | None = None
    activations: str = "16"
    eps_bwd: float | None = None
    inputs: dict[str, InputChoice] = field(default_factory=dict)
    cache: CacheChoice | None = None
    rotation: int | None = None

    def apply(self, model: Any, tokenizer: Any = None, data: str | Path | None = None, **options: Any) -> Any:
        """Round a model in memory to this plan: see `natprec.rounding.apply_plan`."""
        from natprec.api import apply

        return apply(self, model, tokenizer, data, **options)

    def refuse_other_model(self, digest: str, name: str) -> None:
        """Stop before another model is rounded to this plan.

        Raises:
            InputError: the digests differ.
        """
        if digest != self.model_digest:
            raise InputError(
                f"the plan is of {self.model!r} (weights {self.model_digest}), but {name!r} has weights {digest}; "
                "measure this model, or name the one that was measured"
            )

    @property
    def rounded_inputs(self) -> dict[str, ActivationFormat]:
        """Unit → format of its input, where that is rounded."""
        return {unit: choice.format for unit, choice in self.inputs.items() if choice.format is not None}

    @property
    def few_tokens(self) -> dict[str, int]:
        """Weights of experts → the tokens that they saw, where those were too few to measure them by themselves."""
        seen = {name: choice.tokens for name, choice in self.sites.items() if choice.tokens is not None}
        return {name: tokens for name, tokens in seen.items() if tokens < MIN_TOKENS}

    @property
    def natural_bits(self) -> float | None:
        """Mean b* over the weights whose b* is known: what the network needs, beside `histogram`, what it gets."""
        known = [choice for choice in self.sites.values() if choice.natural_bits is not None]
        elements = sum(choice.elements for choice in known)
        return sum((choice.natural_bits or 0) * choice.elements for choice in known) / elements if known else None

    def histogram(self) -> dict[int, int]:
        """Width → number of weights."""
        counts: dict[int, int] = {}
        for choice in self.sites.values():
            bits = choice.format.bits if choice.format else UNQUANTIZED_BITS
            counts[bits] = counts.get(bits, 0) + choice.elements
        return dict(sorted(counts.items()))

    def to_json(self) -> dict[str, Any]:
        """Plain values for plan.json."""
        value = {each.name: getattr(self, each.name) for each in fields(self)}
        del value["sites"]  # the longest last
        return {
            **value,
            "cache": self.cache.to_json() if self.cache else None,
            "inputs": {name: choice.to_json() for name, choice in self.inputs.items()},
            "sites": {name: choice.to_json() for name, choice in self.sites.items()},
        }

    def save(self, path: str | Path) -> None:
        """Write plan.json."""
        write_json(Path(path), self.to_json())

    @classmethod
    def load(cls, path: str | Path) -> Plan:
        """Read plan.json.

        Raises:
            InputError: missing, no JSON, or not a plan.
        """
        path = Path(path)
        if not path.is_file():
            raise InputError(f"plan {str(path)!r} does not exist; write it with natprec solve --out {path}")
        try:
            value = json.loads(path.read_text())
            sites = {name: Choice.from_json(choice) for name, choice in value.pop("sites").items()}
            value["inputs"] = {name: InputChoice.from_json(choice) for name, choice in value["inputs"].items()}
            value["cache"] = value["cache"] and CacheChoice.from_json(value["cache"])
            value["kl_predicted_ci95"] = tuple(value["kl_predicted_ci95"])
            return cls(**value, sites=sites)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise InputError(f"plan {str(path)!r} cannot be read ({error!r}); solve again") from error
