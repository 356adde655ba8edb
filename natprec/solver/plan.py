"""The `Plan`: each site's format, the tolerance that it answers, and what it will weigh."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from natprec.costs.choose import BYTES, MINIMIZE
from natprec.errors import InputError
from natprec.formats import EngineProfile, Format, engine_profile
from natprec.formats.engines import PROFILES
from natprec.formats.gpus import generation
from natprec.models.routing import MIN_TOKENS
from natprec.roundings import ROUNDINGS
from natprec.solver.agreement import refuse_other_engine, refuse_other_sites, refuse_other_sums
from natprec.solver.choices import UNQUANTIZED_BITS, CacheChoice, Choice, InputChoice, upgraded
from natprec.solver.needs import Needs
from natprec.solver.objective import PlanCost
from natprec.transforms import rotated_digest
from natprec.utils.atomic_files import write_json
from natprec.utils.human import human_bytes, summary_html, summary_line
from natprec.utils.own_files import PLAN, read_json, sealed
from natprec.utils.provenance import Provenance
from natprec.utils.schema import Above0, Among, Count, From0, Named, Place, Seed, Within, read

if TYPE_CHECKING:
    from natprec.measurement.subject import Subject

VERSION = 2
"""Of plan.json: 2 since the joint is predicted beside the sum; 1 had names of formats; without `version` it is 0."""


@dataclass(frozen=True)
class Plan:
    """Site → format.

    Attributes:
        eps: the tolerance promised for the whole model; None for a size target.
        eps_solved: the tolerance the solver worked with: a little less than `eps`, less still after a correction.
        eps_scope: 'model' or 'site'.
        rounding: 'gptq', 'yaqa', 'learned' or 'rtn', with which `kl_predicted` was measured.
        kl_predicted: of all sites together; the unit of this and of `eps` is that of `distortion`.
        kl_sum: the sum over sites, which is what is predicted where the joint was not looked at.
        kl_joint: ½ E[(Σ_v g_v · δ_v)²] per term, with the errors of all sites together, and `joint_ci95`, its interval
            over samples: see `natprec.solver.joint`. None: not looked at.
        stored_bytes: forecast of the whole checkpoint on disk; `stored_bytes_reference`: of the same
            folder with 16-bit weights.
        source_bytes, source_format: of the file that was given: see `natprec.measurement.Header`.
        uniform: the best single format for all Linear weights that stores no more; `kl_uniform`: predicted for
            it, all else as in this plan. If that is as good as mixed widths, this plan is that one.
        activations: bits asked for of Linears' inputs, or 'auto'; `inputs`: fused group → what its input got.
        eps_bwd: of each gradient's energy, the share that rounding it may lose; None: any.
        cache: of keys and values; None: 16 bits.
        distortion: name of what is kept small: 'kl' (nats per token) or another of `natprec.distortions`.
        rotation: the seed by which the model has to be rotated first, which `model_digest` knows of; None: not at all.
        gpu: the generation, or 'any', whose arithmetic this is; None: formats that do not depend on one.
        needs: what loads it; None where no GPU was named.
        untied: whether the output head, tied to the embedding in the model, is written apart from it.
        margin: part of `eps` that was kept back for other kinds of text; None: no tolerance for the whole model.
        minimize, cost…: see `natprec.solver.objective.PlanCost`; plans of natprec before costs have none.
        provenance: how the plan came to be, which decides nothing.
    """

    model: str
    model_digest: str
    engine: Annotated[str, Among(tuple(PROFILES))]
    storage_dtype: Annotated[str, Among(("bfloat16", "float16", "float32"))]
    eps: Above0 | None
    eps_solved: Above0 | None
    eps_scope: Annotated[str, Among(("model", "site"))]
    rounding: Annotated[str, Among(ROUNDINGS)]
    kl_predicted: float
    kl_predicted_ci95: tuple[float, float]
    kl_sum: float
    stored_bytes: Count
    stored_bytes_reference: Count
    bits_per_weight: From0
    bits_per_weight_total: From0
    sites: dict[str, Choice]
    kl_joint: From0 | None = None
    joint_ci95: tuple[From0, From0] | None = None
    distortion: str = "kl"
    uniform: str | None = None
    kl_uniform: float | None = None
    activations: str = "16"
    eps_bwd: Above0 | None = None
    inputs: dict[str, InputChoice] = field(default_factory=dict)
    cache: CacheChoice | None = None
    rotation: Seed | None = None
    gpu: Annotated[str, Named(generation)] | None = None
    needs: Needs | None = None
    untied: bool = False
    margin: Annotated[float, Within(0, 1)] | None = None
    source_bytes: Count | None = None
    source_format: str = ""
    minimize: Annotated[str, Among(MINIMIZE)] = BYTES
    cost: From0 | None = None
    cost_error: From0 | None = None
    cost_unit: str = BYTES
    cost_source: str = "counted"
    cost_table: str | None = None
    cost_digest: str | None = None
    cost_whole: bool = False
    provenance: Provenance | None = field(default=None, compare=False)

    def __repr__(self) -> str:
        return summary_line("Plan", self._shown())

    def _repr_html_(self) -> str:
        return summary_html("plan", self._shown())

    def _shown(self) -> dict[str, str]:
        """What a person wants to see first."""
        return {
            "model": self.model,
            "engine": self.engine,
            "bits": f"{self.bits_per_weight:.3f} per quantized weight",
            "stored": f"{human_bytes(self.stored_bytes)} of {human_bytes(self.stored_bytes_reference)}",
            f"{self.distortion} predicted": f"{self.kl_predicted:.4g}",
            "eps": "none" if self.eps is None else f"{self.eps:g}",
        }

    @property
    def profile(self) -> EngineProfile:
        """The formats that the engine runs on the plan's GPU, whether a run has loaded them or not."""
        return engine_profile(self.engine, self.gpu, untested=self.gpu is not None)

    def apply(self, model: Any, tokenizer: Any = None, data: str | Path | None = None, **options: Any) -> Any:
        """Round a model in memory to this plan: see `natprec.rounding`."""
        from natprec.pipeline.api import apply

        return apply(self, model, tokenizer, data, **options)

    def is_of(self, digest: str) -> bool:
        """Whether these are the weights that were planned, be it before a rotation."""
        return self.model_digest in (digest, rotated_digest(digest, self.rotation))

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

    def refuse_other_sites(self, subject: Subject) -> None:
        """Stop before a model is rounded whose sites are not those of the plan.

        Raises:
            InputError: names a site that the plan or the model lacks, or that the engine does not run as planned.
        """
        refuse_other_sites(self, subject, Place(f"the plan of {self.model!r}", "solve again"))

    @property
    def quantized(self) -> list[str]:
        """The weights that have a format."""
        return [name for name, choice in self.sites.items() if choice.format is not None]

    @property
    def rounded_inputs(self) -> dict[str, Format]:
        """Fused group → format of its input, where that is rounded."""
        return {fused_group: choice.format for fused_group, choice in self.inputs.items() if choice.format is not None}

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
        if self.gpu is None:
            del value["gpu"], value["needs"], value["untied"]
        elif self.needs is not None:
            value["needs"] = asdict(self.needs)
        return {
            "version": VERSION,
            **value,
            "cache": self.cache.to_json() if self.cache else None,
            "provenance": asdict(self.provenance) if self.provenance else None,
            "inputs": {name: choice.to_json() for name, choice in self.inputs.items()},
            "sites": {name: choice.to_json() for name, choice in self.sites.items()},
        }

    def content(self) -> str:
        """All but how it came to be: plans with the same content round to the same weights."""
        return json.dumps(self.to_json() | {"provenance": None}, sort_keys=True)

    def cost_to_json(self) -> dict[str, Any]:
        """What it is the least of, and what it costs."""
        return {each.name: getattr(self, each.name) for each in fields(PlanCost)}

    def save(self, path: str | Path) -> None:
        """Write plan.json, with its checksum."""
        write_json(Path(path), sealed(self.to_json()))

    @classmethod
    def load(cls, path: str | Path) -> Plan:
        """Read plan.json.

        Raises:
            InputError: missing, changed, no plan, of another version, or one that no engine can run; names the field.
        """
        path = Path(path)
        value = read_json(path, PLAN, (0, 1, VERSION))
        place = PLAN.place(path)
        version = value.pop("version", 0)
        if version < VERSION and "kl_predicted" in value:
            value["kl_sum"] = value["kl_predicted"]  # nothing else was predicted
        if version == 0 and "sites" in value:
            value["sites"] = upgraded(value["sites"], place.within("sites"))
        plan: Plan = read(cls, value, place)
        refuse_other_sums(plan, place)
        refuse_other_engine(plan, place)
        return plan
