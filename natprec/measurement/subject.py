"""The model under measurement: loaded, split into segments, its sites found."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import nn

from natprec.data.ordinary import readable
from natprec.data.pictured_text import PicturedText
from natprec.data.windows import continues
from natprec.distortions import Distortion, EmbeddingDistance, named
from natprec.distortions.pictures import AfterPictures
from natprec.engines.architectures import takes_embedding, takes_head
from natprec.errors import InputError, ModelError, first_line
from natprec.formats import EngineProfile, Format, engine_profile
from natprec.measurement.beside import carried_bytes, other_bytes, other_entries
from natprec.measurement.candidates import formats_to_measure
from natprec.models.activation_sites import find_activations
from natprec.models.experts import take_apart
from natprec.models.leftovers import HALF, Leftovers, exceptions, settle_head, stored_dtypes, whole_vectors
from natprec.models.library_rounding import refuse_rounded_otherwise
from natprec.models.loading import LoadedModel, choose_storage_dtype, model_digest
from natprec.models.model_files import task_of_class
from natprec.models.segments import SegmentedModel
from natprec.models.trust import code_files
from natprec.models.weight_sites import Site, find_sites
from natprec.models.weights import InMemory
from natprec.tasks import CAUSAL, VISION_LANGUAGE, Samples, Task
from natprec.transforms import Gauge, find_gauges, rotate, rotated_digest
from natprec.utils.matmul import arithmetic
from natprec.utils.records import public_name
from natprec.utils.seeds import check_seed

TRIED = 2, 32
"""Random samples, and positions of each, on which a rotation is tried."""


@dataclass(frozen=True)
class Subject:
    """A model with everything that measuring, rounding and writing need to know of it.

    Attributes:
        name: as files that are passed on call it: see `natprec.utils.records`.
        digest: identifies the weights; taken before anything changes them, and told of a rotation.
        other_bytes: parameters and buffers that are no sites, as they will be stored.
        carried_bytes: tokenizer and configuration files of a checkpoint, the names of those parameters, and what is
            carried over as it is.
        task: what the model is for.
        companions: more files of a checkpoint: path → content.
        gguf: the GGUF file that the model was read from, if it was.
        leftovers: what else is in the model's checkpoint.
        rotation: the seed by which the model was rotated after it was loaded; None: it is as it was.
        trusted: whether code that comes with the model may run, where a checkpoint of it is loaded.
        untied: the output head, where it was tied to the embedding and is a site of its own now; else empty.
        revision: the model's commit on the hub; None: it is not from there.
        source_bytes, source_format: of the file that was given: see `LoadedModel`.
        pictures: what it is asked about besides text; None: text alone.
        tower: sites that only pictures reach.
        left: sites that stay at 16 bits whatever they cost.
    """

    name: str
    model: nn.Module
    tokenizer: Any
    storage_dtype: torch.dtype
    segmented: SegmentedModel
    sites: list[Site]
    digest: str
    other_bytes: int
    carried_bytes: int
    task: Task = CAUSAL
    companions: dict[str, bytes] = field(default_factory=dict)
    gguf: Path | None = None
    leftovers: Leftovers = field(default_factory=Leftovers)
    rotation: int | None = None
    trusted: bool = False
    untied: str = ""
    revision: str | None = None
    source_bytes: int | None = None
    source_format: str = ""
    pictures: PicturedText | None = None
    tower: frozenset[str] = frozenset()
    left: frozenset[str] = frozenset()

    @property
    def distortion(self) -> Distortion:
        """The distortion that every tolerance of this model limits."""
        return self.segmented.distortion

    @property
    def probe(self) -> Samples:
        """A small sample, to see how the model is put together: with a picture, if it is asked about some."""
        return self.segmented.shown

    @cached_property
    def writes(self) -> bool:
        """Whether it can write text: a language model whose weights are in memory, and whose own code can go on."""
        whole = self.task.generates and self.segmented.weights.whole
        return whole and (self.tokenizer is None or continues(self.model, self.tokenizer))

    @cached_property
    def encodes_ordinary(self) -> bool:
        """Whether it is an encoder for which ordinary text stands in for text of its own, which it cannot write."""
        return self.task.material == "text" and not self.task.generates and readable(self.tokenizer)

    @cached_property
    def gauges(self) -> dict[str, Gauge]:
        """Fused group → where its inputs can be rescaled; found when first asked for."""
        return find_gauges(self.segmented, self.sites, self.probe)

    @cached_property
    def activations(self) -> list[Site]:
        """Sites that are no weights: found when first asked for."""
        return find_activations(self.segmented, self.sites, self.probe, self.task.generates)

    @property
    def unreached(self) -> set[str]:
        """Sites that a few tokens did not reach, and no other expert can speak for: text will hardly do so."""
        reached, read = self.segmented.probe.input_of.keys(), self.segmented.probe.read
        return {
            site.name
            for site in self.sites
            if not read.isdisjoint(site.uses) or not (site.experts or reached & set(site.uses))
        }

    @classmethod
    def of(cls, loaded: LoadedModel, distortion: Distortion | None = None, products: str = "auto") -> Subject:
        """Split and search a loaded model.

        Args:
            distortion: in place of the one that suits the model.
            products: what they are computed in where the model runs for statistics: a name in `ARITHMETIC`.
        Raises:
            InputError: a distortion for another kind of model.
            ModelError: no Linear layer.
        """
        model = loaded.model
        if distortion is not None:
            _refuse_unsuitable(distortion, loaded)
        distortion = distortion or named(loaded.distortion)
        if isinstance(distortion, EmbeddingDistance) and loaded.head is not None:
            distortion = EmbeddingDistance(distortion.pooling, loaded.head)
        dtype = arithmetic(products, next(model.parameters()).device)
        with loaded.task.probing(loaded.name):
            segmented = SegmentedModel(
                model, loaded.task.probe(model), distortion, loaded.weights, dtype, loaded.task.convolutions
            )
        sites = find_sites(segmented)
        return cls(
            name=public_name(loaded.name),
            model=model,
            tokenizer=loaded.tokenizer,
            storage_dtype=loaded.storage_dtype,
            segmented=segmented,
            sites=sites,
            digest=model_digest(model, loaded.weights),
            other_bytes=other_bytes(model, sites, loaded.weights.dtypes),
            carried_bytes=carried_bytes(model, loaded.tokenizer, loaded.companions)
            + loaded.leftovers.nbytes
            + other_entries(model, sites),
            task=loaded.task,
            companions=loaded.companions,
            gguf=loaded.gguf,
            leftovers=loaded.leftovers,
            trusted=loaded.trusted,
            revision=loaded.revision,
            source_bytes=loaded.source_bytes,
            source_format=loaded.source_format,
        )

    @classmethod
    def in_memory(
        cls,
        model: Any,
        tokenizer: Any,
        name: str | None = None,
        distortion: Distortion | None = None,
        products: str = "auto",
    ) -> Subject:
        """Take a model that is already there (a notebook's); it is set to eval, without gradients, its experts Linears.

        Of an encoder the body is taken, without a head; unless told otherwise its embeddings are means.
        """
        task = task_of_class(model.config, type(model).__name__)
        model = task.part(model)
        model.eval().requires_grad_(False)
        declared = next(model.parameters()).dtype
        common, dtypes = stored_dtypes(model, {key: value.dtype for key, value in model.state_dict().items()})
        model.float()
        take_apart(model)
        settle_head(model)
        label = name or getattr(model, "name_or_path", "") or type(model).__name__
        weights = InMemory()
        dtype = choose_storage_dtype(common if common in HALF else declared, model, weights)
        stored = stored_dtypes(model, dtypes)[1]
        weights.dtypes = exceptions(common, stored, dtype) | whole_vectors(task, common, stored, model)
        place = getattr(model, "name_or_path", "")
        code = code_files(place) if place else {}
        revision = getattr(model.config, "_commit_hash", None)
        loaded = LoadedModel(
            label, model, tokenizer, dtype, None, task, task.distortion, code, weights, revision=revision
        )
        return cls.of(loaded, distortion, products)

    def rotated(self, seed: int, note: Callable[[str], None] = lambda line: None) -> Subject:
        """The subject with its model rotated, in place: see `natprec.transforms.rotation`.

        Args:
            note: gets a line for what was rotated, and for what was not and why.
        Raises:
            InputError: nothing can be rotated, or the weights are on disk.
        """
        if self.task.material != "text":
            raise InputError(
                f"transforms 'rotate': {self.name!r} is {self.task.noun}, and natprec knows the residual stream of "
                "language models alone; measure with --transforms auto"
            )
        if self.task == VISION_LANGUAGE:
            raise InputError(
                f"transforms 'rotate': what pictures add to the residual stream of {self.name!r} would not be rotated; "
                "measure with --transforms auto"
            )
        if not self.segmented.weights.whole:
            raise InputError(
                f"transforms 'rotate': rotating {self.name!r} needs the whole model in memory, and its weights are on "
                "disk; use --weights memory, or measure with --transforms auto"
            )
        seed = check_seed(seed)
        for line in rotate(self.segmented, self.sites, self.gauges, self.task.made_up(self.model, *TRIED), seed):
            note(line)
        return replace(self, digest=rotated_digest(self.digest, seed), rotation=seed)

    def seeing(self, pictures: PicturedText) -> Subject:
        """The subject with its vision tower reached: its samples may have pictures from now on.

        Raises:
            InputError: it reads text alone.
            ModelError: it and its processor do not go together.
        """
        if self.task != VISION_LANGUAGE:
            why = "which takes its images as --data" if self.task.material == "images" else "which sees no pictures"
            raise InputError(f"images {pictures.name!r}: model {self.name!r} is {self.task.noun}, {why}")
        own, probe = self.segmented, pictures.probe().to(next(self.model.parameters()).device)
        try:
            segmented = SegmentedModel(self.model, probe, AfterPictures(own.distortion), own.weights, own.products)
        except (AttributeError, IndexError, RuntimeError, TypeError, ValueError) as error:
            raise ModelError(
                f"model {self.name!r} cannot be given what its processor makes of a picture ({first_line(error)}); "
                "take the processor of the same model, or measure without --images"
            ) from error
        sites = find_sites(segmented)
        beside = other_bytes(self.model, sites, own.weights.dtypes)
        tower = frozenset(site.name for site in sites if own.probe.input_of.keys().isdisjoint(site.uses))
        return replace(self, segmented=segmented, sites=sites, other_bytes=beside, pictures=pictures, tower=tower)

    def unseen(self, planned: Iterable[str]) -> list[str]:
        """Of the sites that a plan quantizes those which only pictures reach, where there are none."""
        if self.task != VISION_LANGUAGE or self.pictures is not None:
            return []
        reached = {site.name for site in self.sites} - self.unreached
        return [name for name in planned if name not in reached]

    def refuse_unseen(self, planned: Iterable[str]) -> None:
        """Refuse to round what a plan was made for with pictures, and text alone does not reach.

        Raises:
            InputError: names the first site.
        """
        lost = self.unseen(planned)
        if lost:
            raise InputError(
                f"the plan quantizes {len(lost)} weights that only pictures reach ({lost[0]!r}, for one); give "
                "--images, as the measurement had"
            )

    @property
    def architecture(self) -> str:
        """The model's class, as a checkpoint names it."""
        return type(self.model).__name__

    def gains_apart(self, profile: EngineProfile) -> bool:
        """Whether an engine reads a packed embedding and a packed head of this model, which are tied.

        Written apart they take b_embedding + b_head bits for each weight that takes 16 as it is.
        """
        return (
            profile.gpu is not None
            and {"embedding", "head"} <= profile.formats.keys()
            and takes_embedding(self.architecture)
            and takes_head(self.architecture)
            and self.task.generates
            and self.segmented.weights.whole
            and any(site.tied for site in self.sites)
        )

    def with_head(self, apart: bool) -> Subject:
        """The subject with its output head a site of its own, or tied as it was: in place, the function is the same."""
        if apart is bool(self.untied):
            return self
        model: Any = self.model
        embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
        weight = embedding.weight
        head.weight = nn.Parameter(weight.detach().clone(), requires_grad=False) if apart else weight
        for config in {id(each): each for each in (model.config, model.config.get_text_config())}.values():
            config.tie_word_embeddings = not apart
        own = self.segmented
        segmented = SegmentedModel(model, own.shown, own.distortion, own.weights, own.products)
        segmented.workers = own.workers
        sites = find_sites(segmented)
        name = next((name for name, module in model.named_modules() if module is head), "")
        return replace(self, segmented=segmented, sites=sites, untied=name if apart else "")

    def refuse_rounded_otherwise(self, engine: str, inputs: bool, cache: bool) -> None:
        """Refuse activations that an engine rounds otherwise than is planned: see `natprec.models.library_rounding`.

        Raises:
            ModelError: names the first module.
        """
        if engine_profile(engine).full_range and (inputs or cache):
            refuse_rounded_otherwise(self.segmented, self.activations, self.probe, inputs, cache)

    def candidates(
        self, profile: EngineProfile, group_size: int | None, sites: str = "weights"
    ) -> dict[str, tuple[Format, ...]]:
        """Site name → formats to measure: one group size, or with None all that divide the site; or GGUF types.

        Sites whose rows the group size does not divide, and those that an engine runs together with them, have the
        next smaller one that does; those that none fits, or that would take no less than 16 bits, have no format.

        Args:
            sites: 'all' adds the weights, one scale per row, that some engines multiply with rounded activations.
        Raises:
            InputError: the group size, or the blocks of all GGUF types, divide no Linear.
        """
        found = formats_to_measure(self.sites, self.architecture, profile, group_size, sites)
        return {name: () if name in self.left else formats for name, formats in found.items()}


def _refuse_unsuitable(distortion: Distortion, loaded: LoadedModel) -> None:
    """A distortion reads what the models of its task put out."""
    if not loaded.task.suits(distortion.task):
        raise InputError(
            f"distortion {distortion.name!r} needs another kind of model, and {loaded.name!r} is {loaded.task.noun}; "
            f"leave it out for {loaded.distortion!r}"
        )
