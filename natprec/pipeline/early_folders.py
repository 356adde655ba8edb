"""Refusals of folders of images or recordings, and of models that are given them: see `natprec.pipeline.early`."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from natprec.config import QuantizeConfig
from natprec.data.folders import KINDS, PICTURES, RECORDINGS, Kind
from natprec.data.pictures import common_size, find_pictures
from natprec.data.recordings import refuse_recordings
from natprec.errors import InputError, ModelError
from natprec.models.config_file import FILE, found_object
from natprec.models.places import local_path

IMAGE_ENCODERS = (
    "beit", "bit", "convnext", "convnextv2", "data2vec-vision", "deit", "dinat", "dinov2", "dinov2_with_registers",
    "dinov3_convnext", "dinov3_vit", "efficientnet", "focalnet", "hiera", "ijepa", "levit", "mobilenet_v1",
    "mobilenet_v2", "mobilevit", "mobilevitv2", "poolformer", "pvt", "regnet", "resnet", "segformer", "swiftformer",
    "swin", "swinv2", "vit", "vit_mae", "vit_msn",
)  # fmt: skip
"""Model types that are given images alone; others that are will be refused later."""

SPEECH_CLASSES = tuple(f"{family}ForConditionalGeneration" for family in ("Whisper", "Moonshine", "Speech2Text"))
"""Classes that are given recordings; others that are will be refused later."""

TEXT_CLASSES = ("ForCausalLM", "LMHeadModel", "ForMaskedLM")
"""Ends of the names of classes that read text alone."""

LEARNED = "learned"
"""The rounding that learns, a block at a time."""

PROCESSORS = ("preprocessor_config.json", "processor_config.json")
"""Files of which one says how a model's pictures or recordings are made ready."""


def kind_of(described: dict[str, Any]) -> Kind | None:
    """Files that a model with this configuration is given; None: it reads text, or nobody knows yet."""
    kind, names = str(described.get("model_type")), described.get("architectures")
    classes = [str(name) for name in names] if isinstance(names, list) else []
    if any("ForImageClassification" in name for name in classes):
        return PICTURES
    if kind in IMAGE_ENCODERS or kind.endswith("_vision_model"):
        return PICTURES
    return RECORDINGS if any(name in SPEECH_CLASSES for name in classes) else None


def refuse_samples(config: QuantizeConfig, kind: Kind, place: Path | None) -> None:
    """No folder, none of these files in it, a broken one, or nothing that makes them ready."""
    heard = kind is RECORDINGS
    if config.data is None:
        model = "a speech model" if heard else "a model of them"
        raise InputError(f"no {kind.what}, and {config.model!r} is {model}; name a folder of {kind.what} with --data")
    if place is not None and not any((place / name).is_file() for name in PROCESSORS):
        what = "feature extractor" if heard else "processor of images"
        raise ModelError(
            f"model {config.model!r} has no {what} ({' or '.join(PROCESSORS)}); add it from the model that it was "
            "made from"
        )
    refuse_learning(config, config.model, heard)
    refuse_files(config.data, kind)


def refuse_learning(config: QuantizeConfig, model: str, speech: bool) -> None:
    """Refuse to learn on a speech model: it has no one chain of blocks, and its texts have no one length.

    Raises:
        InputError: it is asked for.
    """
    if speech and (config.learns or config.rounding == LEARNED):
        option = f"--rounding {LEARNED}" if config.rounding == LEARNED else "--learn-tokens, --time"
        raise InputError(f"{model!r} is a speech model, on which natprec does not learn ({option}); leave that out")


def refuse_files(source: str, kind: Kind) -> None:
    """Read each of a folder's files."""
    if kind is RECORDINGS:
        refuse_recordings(source)
    else:
        common_size(find_pictures(source))


def refuse_folder(config: QuantizeConfig, source: str, described: dict[str, Any]) -> bool:
    """Whether a source is a folder of images or recordings, for a model of which nothing or too little is known yet.

    Raises:
        InputError: one of the files is broken, or the model reads text.
    """
    if not Path(source).expanduser().is_dir():
        return False
    kind = next((each for each in KINDS if each.within(source)), None)
    names = described.get("architectures")
    reads = any(str(name).endswith(TEXT_CLASSES) for name in names) if isinstance(names, list) else False
    if described and kind is not None and (reads or kind is PICTURES):
        raise InputError(
            f"data {source!r} is a folder of {kind.of}, and model {config.model!r} ({described.get('model_type')}) "
            "reads text; name a text file"
        )
    if described and kind is None:
        return False
    refuse_files(source, kind or PICTURES)
    return True


def refuse_pictures(config: QuantizeConfig) -> None:
    """Refuse pictures that cannot be used: none, a broken one, a model without a processor or that reads text alone.

    Raises:
        InputError, ModelError: says what and why.
    """
    if config.images is None:
        return
    place = local_path(config.model) if config.model else None
    if place is not None and place.is_file():
        raise InputError(
            f"images {config.images!r}: {config.model!r} is a GGUF file, which natprec reads as text alone"
        )
    described = {} if place is None else found_object(place / FILE)
    if kind_of(described) is RECORDINGS:
        raise InputError(f"images {config.images!r}: {config.model!r} is a speech model, which sees none; leave it out")
    sees = any(re.search("vision|image|visual", key) for key in described)
    if described and not sees:
        raise InputError(
            f"images {config.images!r}: model {config.model!r} ({described.get('model_type')}) reads text alone; leave "
            "out --images"
        )
    if place is not None and described and not any((place / name).is_file() for name in PROCESSORS):
        raise ModelError(
            f"images {config.images!r}: model {config.model!r} has no processor ({' or '.join(PROCESSORS)}); add it "
            "from the model that it was made from, or leave out --images"
        )
    common_size(find_pictures(config.images))  # reads each of them
