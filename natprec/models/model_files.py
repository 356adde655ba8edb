"""Finding a checkpoint and naming its defects: where it lies, whether its files are whole, whether it
is a causal language model, one that also sees, an encoder of text, or a model of images or speech. Each refusal is one
sentence that says what to do.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from natprec.errors import ModelError, NatprecError, first_line
from natprec.models.bounds import refuse_many_tensors
from natprec.models.layers import multiplies
from natprec.models.other_folders import UNPICKLED, pickle_in
from natprec.models.pipelines import refuse_component
from natprec.tasks import CAUSAL, ENCODER, IMAGE_CLASSIFIER, IMAGE_ENCODER, SPEECH, VISION_LANGUAGE, Task
from natprec.utils.json_text import from_json
from natprec.utils.system_faults import out_of_memory, remedy_of

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

LONGEST_HEADER = 100_000_000
"""Bytes, beyond which safetensors itself refuses."""


def hub_revision(folder: Path) -> str | None:
    """The commit of a folder in the hub's cache, where folders are called by it; None elsewhere.

    >>> hub_revision(Path("models--a--b/snapshots/0a1b")), hub_revision(Path("models/b"))
    ('0a1b', None)
    """
    return folder.name if folder.parent.name == "snapshots" else None


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a folder, each one present and as long as its header says."""
    refuse_component(folder, str(folder), None)
    if not (folder / "config.json").is_file():
        ggufs = sorted(file.name for file in folder.glob("*.gguf"))
        remedy = f"give the file itself: {folder / ggufs[0]}" if ggufs else "give the folder of a saved model"
        if (folder / "adapter_config.json").is_file():
            remedy = "it holds an adapter (adapter_config.json): merge it into its model and save that"
        elif (pickle := pickle_in(folder)) is not None:
            remedy = f"{pickle} is a pickle, which can run code and is not read: {UNPICKLED}"
        raise ModelError(f"folder {str(folder)!r} has no config.json, so it is no model; {remedy}")
    index = folder / "model.safetensors.index.json"
    if (folder / "model.safetensors").is_file():
        files = [folder / "model.safetensors"]
    elif index.is_file():
        try:
            files = [folder / name for name in sorted(set(from_json(index.read_text("utf-8"))["weight_map"].values()))]
        except (ValueError, KeyError, AttributeError, TypeError) as error:
            raise ModelError(f"{str(index)!r} is damaged ({first_line(error)}); download it again") from error
    else:
        pickle = pickle_in(folder)
        found = f"only {pickle}, a pickle, which can run code and is not read" if pickle else "no weights"
        raise ModelError(
            f"folder {str(folder)!r} holds {found}; it needs model.safetensors: "
            "save the model with save_pretrained(...), or use a copy that has safetensors"
        )
    for file in files:
        _check_safetensors(file)
    return files


def _check_safetensors(file: Path) -> None:
    """Name a missing or damaged file; only its header is read."""
    from safetensors import SafetensorError, safe_open

    if not file.is_file():
        raise ModelError(f"weights file {str(file)!r} is named in the index but missing; download it again")
    try:
        refuse_many_tensors(_listed(file), file)
        with safe_open(str(file), framework="pt"):
            pass
    except (SafetensorError, OSError) as error:
        cut = _first_cut_tensor(file)
        raise ModelError(
            f"weights file {str(file)!r} ({file.stat().st_size} bytes) is truncated or damaged "
            f"({first_line(error)}{f', tensor {cut!r} is cut off' if cut else ''}); "
            "download it again (git lfs pull, in a clone)"
        ) from error


def _listed(file: Path) -> int:
    """Tensors that the header of a safetensors file lists; it is not parsed, and not read where it is too long."""
    with file.open("rb") as opened:
        length = int.from_bytes(opened.read(8), "little")
        return opened.read(length).count(b'"data_offsets"') if length <= LONGEST_HEADER else 0


def _first_cut_tensor(file: Path) -> str | None:
    """The first tensor that reaches beyond the end of a safetensors file; None if its header tells nothing."""
    with file.open("rb") as opened, contextlib.suppress(ValueError, KeyError, TypeError, AttributeError):
        length = int.from_bytes(opened.read(8), "little")
        if length > min(file.stat().st_size, LONGEST_HEADER):
            return None
        header: dict[str, Any] = from_json(opened.read(length))
        ends = {name: entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"}
        cut = (name for name in sorted(ends, key=ends.__getitem__) if 8 + length + ends[name] > file.stat().st_size)
        return next(cut, None)
    return None


def task_of(name: str, config: PreTrainedConfig) -> Task:
    """Whether a checkpoint is a language model, one that also sees, an encoder or a classifier: by what it says it is.

    Encoders load as causal models without complaint, with a random head.

    Raises:
        ModelError: it is none of these.
    """
    from transformers.models.auto import modeling_auto

    own_code = "AutoModelForCausalLM" in (getattr(config, "auto_map", None) or {})
    causal = set(modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values())
    found = list(getattr(config, "architectures", None) or [])
    if not own_code and is_encoder(config, found):
        return ENCODER
    images = None if own_code else _of_images(config, found)
    if images is not None:
        return images
    if not own_code and _of_speech(config, found):
        return SPEECH
    sees = not own_code and _sees_pictures(config, found)
    language: Any = config.get_text_config() if sees else config
    reason = ""
    if getattr(config, "is_encoder_decoder", False) or getattr(language, "is_encoder_decoder", False):
        reason = "is an encoder-decoder"
    elif sees and not hasattr(language, "vocab_size"):
        reason = "sees pictures, and has no language model inside"
    elif sees:
        return VISION_LANGUAGE
    elif found and not own_code and not causal.intersection(found):
        reason = "is neither a causal language model nor an encoder, and no classifier of images"
    elif _sees_the_future(config) and hasattr(config, "is_decoder"):
        reason = "has a head that predicts the next token, but is_decoder is false: tokens see the future"
    if not reason:
        return CAUSAL
    what = ", ".join(found) or config.model_type
    raise ModelError(
        f"model {name!r} ({what}) {reason}; natprec needs one that predicts the next token, embeds text or images, "
        "names the class of an image, or writes what is said in a recording"
    )


def task_of_class(config: PreTrainedConfig, name: str) -> Task:
    """The task of a model in memory, by its class."""
    if is_encoder(config, [name]):
        return ENCODER
    images = _of_images(config, [name])
    if images is not None:
        return images
    if _of_speech(config, [name]):
        return SPEECH
    return VISION_LANGUAGE if _sees_pictures(config, [name]) else CAUSAL


def _of_images(config: PreTrainedConfig, classes: list[str]) -> Task | None:
    """The task of classes of a family that is given images alone; None: it is none."""
    from transformers.models.auto import modeling_auto

    kind = config.model_type
    classifiers = _classes(modeling_auto.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES, kind)
    if classifiers.intersection(classes):
        return IMAGE_CLASSIFIER
    sees = kind in modeling_auto.MODEL_FOR_IMAGE_MAPPING_NAMES or kind.endswith("_vision_model")
    bodies = _classes(modeling_auto.MODEL_MAPPING_NAMES, kind)
    return IMAGE_ENCODER if sees and (not classes or bodies.intersection(classes)) else None


def _of_speech(config: PreTrainedConfig, classes: list[str]) -> bool:
    """Whether classes of a family turn speech into text, by an encoder and a decoder."""
    from transformers.models.auto import modeling_auto

    known = _classes(modeling_auto.MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING_NAMES, config.model_type)
    return bool(getattr(config, "is_encoder_decoder", False)) and bool(known.intersection(classes))


def _classes(mapping: Any, kind: str) -> set[str]:
    """The classes that an Auto class knows for a family."""
    found: Any = mapping.get(kind, ())
    return {found} if isinstance(found, str) else set(found)


def _sees_pictures(config: PreTrainedConfig, classes: list[str]) -> bool:
    """Whether classes (none: not known) of a family turn images and text into text."""
    from transformers.models.auto import modeling_auto

    known = modeling_auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES
    return known.get(config.model_type) in classes if classes else config.model_type in known


def is_encoder(config: PreTrainedConfig, classes: list[str]) -> bool:
    """Whether classes (none: not known) of a family are its body, its masked-LM or its pre-training model."""
    from transformers.models.auto import modeling_auto

    known: set[str] = set()
    for names in (
        modeling_auto.MODEL_MAPPING_NAMES,
        modeling_auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES,
        modeling_auto.MODEL_FOR_PRETRAINING_MAPPING_NAMES,
    ):
        known |= _classes(names, config.model_type)
    decodes = getattr(config, "is_encoder_decoder", False)
    return _sees_the_future(config) and not decodes and (not classes or bool(known.intersection(classes)))


def _sees_the_future(config: PreTrainedConfig) -> bool:
    """`is_decoder` alone decides nothing, GPT-NeoX leaves it false; but a family that also has a masked-LM
    class attends in both directions unless it is set.
    """
    from transformers.models.auto import modeling_auto

    masked = config.model_type in modeling_auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES
    return masked and not getattr(config, "is_decoder", False)


def refuse_without_linear(model: PreTrainedModel) -> None:
    """A head alone is not worth the work."""
    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    if not any(multiplies(module) and module is not head for module in model.modules()):
        kinds = sorted({type(module).__name__ for module in model.modules() if not list(module.children())})
        raise ModelError(
            f"model {type(model).__name__} has no Linear layer besides its head (layers: {', '.join(kinds)}); "
            "natprec quantizes Linear weights: use a model built of them"
        )


def read_generation_config(model: PreTrainedModel, where: str | Path) -> None:
    """Give a model the folder's generation_config.json, where there is one.

    transformers' own loader passes over one that it cannot read, and puts its defaults in place.

    Raises:
        OSError: it cannot be read, or is no JSON.
    """
    from transformers import GenerationConfig

    if model.can_generate() and (Path(where) / "generation_config.json").is_file():
        model.generation_config = GenerationConfig.from_pretrained(where)


@contextlib.contextmanager
def explained(name: str) -> Iterator[None]:
    """Turn whatever transformers raises into one sentence with a remedy."""
    try:
        yield
    except NatprecError:
        raise
    except Exception as error:
        cause = first_line(error)
        if out_of_memory(error):
            remedy = "float32 takes 4 bytes per weight; use a machine with more memory"
        elif (known := remedy_of(error)) is not None:
            remedy = known
        elif isinstance(error, ImportError) or "pip install" in str(error):  # transformers asks so with a ValueError
            remedy = "install the missing package"
        else:
            remedy = "the checkpoint is damaged or unsupported; download it again"
        raise ModelError(f"cannot load model {name!r}: {cause}; {remedy}") from error
