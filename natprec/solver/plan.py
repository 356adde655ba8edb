"""The `Plan`: each site's format, the tolerance that it answers, and what it will weigh."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from natprec.errors import InputError
from natprec.files import write_json
from natprec.formats import Format
from natprec.solver.choices import UNQUANTIZED_BITS, CacheChoice, Choice, InputChoice, upgraded
from natprec.staged.routing import MIN_TOKENS

VERSION = 1
"""Of plan.json: 1 since formats have names; a file without `version` is of version 0."""


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
        """Round a model in memory to this plan: see `natprec.rounding`."""
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
    def rounded_inputs(self) -> dict[str, Format]:
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
            "version": VERSION,
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
            version, sites = value.pop("version", 0), value.pop("sites")
            if version not in (0, VERSION):
                raise InputError(
                    f"plan {str(path)!r} is of version {version!r}, this natprec reads versions 0 and {VERSION}; "
                    "use the natprec that wrote it, or solve again"
                )
            sites = upgraded(sites) if version == 0 else sites
            sites = {name: Choice.from_json(choice) for name, choice in sites.items()}
            value["inputs"] = {name: InputChoice.from_json(choice) for name, choice in value["inputs"].items()}
            value["cache"] = value["cache"] and CacheChoice.from_json(value["cache"])
            value["kl_predicted_ci95"] = tuple(value["kl_predicted_ci95"])
            return cls(**value, sites=sites)
        except InputError:
            raise
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise InputError(f"plan {str(path)!r} cannot be read ({error!r}); solve again") from error
