"""Pipelines of diffusers as folders: what model_index.json says of their parts; torch is not needed.

A part is a folder of its own: a network of diffusers (`transformer`, `unet`, `vae`) or of transformers
(`text_encoder`), the scheduler, tokenizers. A network has a config.json; what else can be told from that is told here,
so that a wrong name is refused within seconds.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from natprec.errors import InputError, ModelError
from natprec.models.config_file import FILE, found_object
from natprec.utils.installed import require

INDEX = "model_index.json"
"""What diffusers calls its description of a pipeline."""

WEIGHTS = {"diffusers": "diffusion_pytorch_model", "transformers": "model"}
"""Library of a network → what its weight files are called."""

DIFFUSERS = "run: pip install 'natprec[diffusion]'"

DENOISERS = ("transformer", "unet", "prior")
"""Parts that a pipeline calls at each step, first those that most pipelines have."""

CLASSES = ("num_embeds_ada_norm", "num_class_embeds")
"""Where a denoiser's config.json has the number of classes that it makes images of."""


@dataclass(frozen=True)
class PipelineFolder:
    """A pipeline as it lies on disk.

    Attributes:
        kind: its class in diffusers.
        parts: name → (library, class).
    """

    folder: Path
    kind: str
    parts: dict[str, tuple[str, str]]

    @classmethod
    def found(cls, folder: Path | None) -> PipelineFolder | None:
        """None where the folder holds no pipeline."""
        said = {} if folder is None else found_object(folder / INDEX)
        if folder is None or not said:
            return None
        parts = {
            name: (str(entry[0]), str(entry[1]))
            for name, entry in said.items()
            if isinstance(entry, list) and len(entry) == 2 and None not in entry
        }
        return cls(folder, str(said.get("_class_name")), parts)

    @property
    def networks(self) -> dict[str, str]:
        """Parts that have weights → their classes."""
        return {
            name: kind
            for name, (library, kind) in self.parts.items()
            if library in WEIGHTS and (self.folder / name / FILE).is_file()
        }

    def described(self, name: str) -> dict[str, Any]:
        """A part's config.json; empty where it has none."""
        return found_object(self.folder / name / FILE)

    @property
    def classes(self) -> int | None:
        """How many classes it makes images of; None where it is asked otherwise."""
        told = (self.described(name).get(key) for name in DENOISERS for key in CLASSES)
        asked = not any("tokenizer" in name for name in self.parts)
        return next((each for each in told if isinstance(each, int)), None) if asked else None

    @property
    def by_text(self) -> bool:
        """Whether it is asked with prompts."""
        return any("tokenizer" in name for name in self.parts)

    def refuse(self, name: str | None) -> None:
        """Refuse a part that cannot be quantized, and a pipeline that cannot run.

        Raises:
            InputError: no name or an unknown one, or diffusers is not installed.
            ModelError: a part is missing.
        """
        where, networks = repr(str(self.folder)), ", ".join(sorted(self.networks))
        if name is None:
            raise InputError(
                f"folder {where} is a pipeline of diffusers ({self.kind}: {', '.join(self.parts)}); "
                f"say with --component which part is to be quantized: {networks}"
            )
        if name not in self.parts:
            near = difflib.get_close_matches(name, self.networks, n=1, cutoff=0.5)
            hint = f"; did you mean {near[0]!r}?" if near else ";"
            raise InputError(f"component {name!r} is no part of {where} ({self.kind}){hint} known: {networks}")
        missing = [part for part in self.parts if not (self.folder / part).is_dir()]
        if missing:
            raise ModelError(
                f"pipeline {where} lacks the folder of its {missing[0]} ({self.parts[missing[0]][1]}); copy it from "
                "the pipeline that it was made from"
            )
        if "scheduler" not in self.parts or not (self.folder / "scheduler" / "scheduler_config.json").is_file():
            raise ModelError(
                f"pipeline {where} has no scheduler (scheduler/scheduler_config.json), whose noise and timesteps it "
                "is measured with; copy it from the pipeline that it was made from"
            )
        if name not in self.networks:
            raise InputError(
                f"component {name!r} of {where} is a {self.parts[name][1]}, which has no weights; known: {networks}"
            )
        require("diffusers", f"{where} is a pipeline of diffusers", DIFFUSERS)

    def weight_files(self, name: str) -> list[Path]:
        """The safetensors files of a network.

        Raises:
            ModelError: there are none.
        """
        stem = WEIGHTS[self.parts[name][0]]
        files = sorted((self.folder / name).glob(f"{stem}*.safetensors"))
        whole = [file for file in files if file.name == f"{stem}.safetensors" or file.name.startswith(f"{stem}-")]
        if not whole:
            raise ModelError(
                f"the {name} of pipeline {str(self.folder)!r} has no {stem}.safetensors; save the pipeline with "
                "save_pretrained(...), or use a copy that has safetensors"
            )
        return whole


def refuse_component(place: Path | None, model: str, name: str | None) -> PipelineFolder | None:
    """The pipeline that a run is about; None: it is about a model.

    Args:
        place: the model's folder; None: it is on the hub.
    Raises:
        InputError, ModelError: a pipeline and --component do not go together; a part of a pipeline was given alone.
    """
    pipeline = PipelineFolder.found(place)
    if pipeline is not None:
        pipeline.refuse(name)
        return pipeline
    kind = {} if place is None else found_object(place / FILE)
    if place is not None and "_class_name" in kind:
        raise ModelError(_alone(place, str(kind["_class_name"])))
    if name is not None:
        what = f"{model!r} is no pipeline of diffusers (it has no {INDEX})"
        raise InputError(f"component {name!r}: {what}; give the pipeline's folder, or leave out --component")
    return None


def _alone(folder: Path, kind: str) -> str:
    whole = PipelineFolder.found(folder.parent)
    if whole is not None and folder.name in whole.parts:
        remedy = f"give the whole pipeline: --model {folder.parent} --component {folder.name}"
    else:
        remedy = (
            "give the folder of the whole pipeline with --component NAME, or measure it from Python: "
            f"natprec.measure({kind}.from_pretrained(...), samples=...)"
        )
    return f"folder {str(folder)!r} is a part of a diffusers pipeline ({kind}); {remedy}"
