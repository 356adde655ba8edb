"""Pictures for a vision-language model: its processor, the folder, and a tower that may have to stay at 16 bits."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from natprec.checkpoints.trial import refusal
from natprec.config import QuantizeConfig
from natprec.data.pictured_text import PicturedText
from natprec.errors import InputError, ModelError, first_line
from natprec.measurement.subject import Subject
from natprec.models.devices import quiet
from natprec.models.hub import download
from natprec.models.model_files import explained
from natprec.models.places import local_path
from natprec.models.trust import processor_of
from natprec.utils.progress import Stages


def pictured(config: QuantizeConfig, images: str, processor: Any = None) -> PicturedText:
    """A folder of pictures, with the model's own processor unless one is given.

    Raises:
        InputError: no pictures, one that cannot be read, or too few positions for one.
        ModelError: the model has no processor.
    """
    found = PicturedText.of(images, processor or _processor(config, images))
    found.refuse_short(config.length)
    return found


def _processor(config: QuantizeConfig, images: str) -> Any:
    place = local_path(config.model) or download(config.model)
    with explained(config.model):
        try:
            with quiet():
                processor = processor_of(place, config.trust_remote_code)
        except (OSError, ValueError) as error:
            raise ModelError(_without_processor(images, config.model, first_line(error))) from error
    if not hasattr(processor, "image_processor"):  # a tokenizer is all that was found
        raise ModelError(_without_processor(images, config.model, f"{type(processor).__name__} is none"))
    return processor


def _without_processor(images: str, model: str, why: str) -> str:
    return (
        f"images {images!r}: model {model!r} has no usable processor of pictures ({why}); add "
        "preprocessor_config.json and processor_config.json of the model that it was made from, or leave out --images"
    )


def of_text(tokenizer: Any) -> Any:
    """The tokenizer in a processor, or itself."""
    return tokenizer.tokenizer if hasattr(tokenizer, "image_processor") else tokenizer


def seeing(subject: Subject, processor: Any, config: QuantizeConfig) -> Subject:
    """The subject with the pictures that are asked for.

    Raises:
        InputError: there are none, or no processor was given.
    """
    if config.images is None:
        return subject
    if not hasattr(processor, "image_processor"):
        raise InputError(
            f"images {config.images!r}: a {type(processor).__name__} makes no pictures ready; give the model's "
            "processor in place of the tokenizer"
        )
    return subject.seeing(pictured(config, config.images, processor))


def tower_loaded(subject: Subject, engine: str, stages: Stages) -> Subject:
    """The subject with its vision tower left at 16 bits if transformers does not load a packed one (SigLIP's, 5.23)."""
    why = refusal(subject, engine) if subject.tower else None
    if why is None:
        return subject
    without = replace(subject, left=subject.tower)
    if refusal(without, engine) is not None:
        return subject
    stages.note(
        f"transformers does not load the packed weights of this vision tower ({why}): its {len(subject.tower)} sites "
        "stay at 16 bits; --engine natprec, for natprec's own loader, quantizes them"
    )
    return without
