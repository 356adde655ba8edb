"""Refusals within seconds, from the first bytes of files, before torch is imported or a model loaded.

Nothing here imports torch or transformers. What passes may still be refused later, where the model has been read.
"""

from __future__ import annotations

import contextlib
import importlib.util
import itertools
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from natprec.config import OPTIONS, QuantizeConfig
from natprec.data.rows import Rows
from natprec.data.sources import source_rows, whole_text
from natprec.errors import InputError, ModelError
from natprec.formats import CHANNEL
from natprec.formats.engines import GGUF_MODELS, GROUP_SIZES, engine_profile
from natprec.models.config_file import FILE, found_object
from natprec.models.gguf_files import gguf_architecture
from natprec.models.places import local_path
from natprec.pipeline.components import pipeline_of, refuse_pipeline
from natprec.pipeline.early_folders import kind_of, refuse_files, refuse_folder, refuse_pictures, refuse_samples
from natprec.utils.atomic_files import refuse_existing
from natprec.utils.installed import BITSANDBYTES, require
from natprec.utils.json_text import from_json
from natprec.utils.marks import refuse_inputs

GROUPED = 100
"""Weight matrices that are looked at for one that a group size divides."""

FLOATS = ("F64", "F32", "F16", "BF16")
"""Types of weights that are not packed, as safetensors calls them."""


def refuse_early(config: QuantizeConfig, out: Path | None = None, overwrite: bool = False, judged: bool = True) -> None:
    """Refuse a model, text or output that cannot be used, from what takes no time to see.

    Args:
        out: the folder that will be written.
        judged: whether held-out text is wanted, too.
    Raises:
        NatprecError: says what and why.
    """
    if out is not None:
        refuse_inputs(out, inputs(config))
        refuse_existing(out, overwrite)
    place = local_path(config.model) if config.model else None
    described = {} if place is None else found_object(place / FILE)
    if refuse_pipeline(config):
        return
    _refuse_model(config, place, described, judged)
    kind = kind_of(described)
    if kind is not None:
        refuse_samples(config, kind, place)
    elif config.data is not None:
        _refuse_data(config, config.data, config.tokens // 2, place, described)  # the model may write the other half
    refuse_pictures(config)
    if judged:
        refuse_held_out(config)


def reads_no_text(config: QuantizeConfig) -> bool:
    """Whether the model is a part of a pipeline, or of images or recordings, which come in folders."""
    place = local_path(config.model) if config.model else None
    if pipeline_of(config) is not None or (place is not None and kind_of(found_object(place / FILE)) is not None):
        return True
    return config.data is not None and Path(config.data).expanduser().is_dir()


def inputs(config: QuantizeConfig) -> dict[str, Path | None]:
    """Option → the file or folder on this machine that it names.

    Raises:
        ModelError: the model is a path, and there is nothing.
    """
    sources = {name: getattr(config, name) for name in ("data", "eval_data", "images", "prompts")}
    on_disk = {OPTIONS[name].flag: _on_disk(source) for name, source in sources.items()}
    return {"--model": local_path(config.model), **on_disk}


def _on_disk(text: str | None) -> Path | None:
    path = None if text is None else Path(os.path.expanduser(text))
    return path if path is not None and path.exists() else None


def refuse_held_out(config: QuantizeConfig) -> None:
    """Refuse a text to judge on that cannot be used: see `refuse_early`."""
    if config.eval_data is not None:
        place = local_path(config.model) if config.model else None
        described = {} if place is None else found_object(place / FILE)
        _refuse_data(config, config.eval_data, config.eval_tokens or config.length, place, described)


def parse_ladder(text: str) -> tuple[float, ...]:
    """Bits per weight, with commas between.

    >>> parse_ladder("3.5,4,4.5")
    (3.5, 4.0, 4.5)

    Raises:
        InputError: not numbers above 0, or one twice.
    """
    try:
        widths = tuple(float(part) for part in text.split(","))
    except ValueError:
        widths = ()
    if not widths or not all(0 < width < 64 for width in widths) or len(set(widths)) < len(widths):
        raise InputError(f"ladder {text!r}: give bits per weight with commas between, each once, such as 3.5,4,4.5")
    return widths


def _refuse_model(config: QuantizeConfig, place: Path | None, described: dict[str, Any], judged: bool) -> None:
    """An architecture that the engine has no form for, or a group size that divides no weight where all have one."""
    profile, size = engine_profile(config.engine), config.group_size
    if config.gpu is None and size is not None and not profile.measured((size,)):
        runs = ["channel" if each == CHANNEL else str(each) for each in GROUP_SIZES if profile.measured((each,))]
        raise InputError(
            f"engine {config.engine!r} has no format in groups of {size}; use --group-size {' or '.join(runs)}"
        )
    if profile.container == "bitsandbytes" and judged:
        require("bitsandbytes", "engine 'bitsandbytes' is judged by that library", BITSANDBYTES)
    kind = described.get("model_type")
    if place is not None and place.is_file() and place.suffix.lower() == ".gguf":
        kind = gguf_architecture(place)
    if profile.container == "gguf":
        if kind is not None and kind not in {*GGUF_MODELS, *GGUF_MODELS.values()}:
            raise ModelError(
                f"model type {kind!r} cannot be written as GGUF yet, only {', '.join(GGUF_MODELS)}; "
                "use another --engine"
            )
        return
    if config.gpu is not None or size is None or size == CHANNEL or place is None or not place.is_dir():
        return
    columns = list(itertools.islice(_row_lengths(place), GROUPED))
    if columns and not any(count % size == 0 for count in columns):
        fitting = [str(each) for each in (32, 64, 128) if all(count % each == 0 for count in columns)]
        raise InputError(
            f"group size {size} divides the rows of no Linear of {config.model!r} ({min(columns)} inputs, for one); "
            f"use --group-size {' or '.join([*fitting, 'channel'])}"
        )


def _row_lengths(place: Path) -> Iterator[int]:
    """Columns of the weights in a model's safetensors files that are matrices of floats, those of embeddings apart."""
    for file in sorted(place.glob("*.safetensors")) if (place / FILE).is_file() else ():
        with contextlib.suppress(OSError, ValueError, AttributeError), file.open("rb") as opened:
            length = int.from_bytes(opened.read(8), "little")
            header = from_json(opened.read(min(length, 100_000_000)))
            for name, entry in header.items():
                shape: Any = entry.get("shape", ()) if isinstance(entry, dict) else ()
                matrix = len(shape) == 2 and entry.get("dtype") in FLOATS
                if matrix and name.endswith("weight") and "embed" not in name and "wte" not in name:
                    yield int(shape[1])


def _refuse_data(
    config: QuantizeConfig, source: str, tokens: int, place: Path | None, described: dict[str, Any]
) -> None:
    """A text that cannot be used, or a folder of images or recordings: of a model that is not here, it may be any."""
    kind = kind_of(described)
    if kind is not None:
        refuse_files(source, kind)
    elif not refuse_folder(config, source, described):
        _refuse_text(config, source, tokens, place)


def _refuse_text(config: QuantizeConfig, source: str, tokens: int, place: Path | None) -> None:
    """A text that is not there, is none, has no such column, or is shorter than the tokens that are wanted."""
    rows = source_rows(source)
    if rows is None:
        text = whole_text(Path(source).expanduser())
        if len(text.encode()) < tokens or _counted(place, text, tokens) < tokens:
            raise InputError(
                f"{source!r} is too short: it has fewer than the {tokens} tokens that are wanted; "
                "lower --tokens or give more text"
            )
    elif Path(source).expanduser().is_file():
        next(Rows(source, config.text_column, None).texts(rows), None)
    elif importlib.util.find_spec("datasets") is None:
        raise InputError(f"reading the hub dataset {source!r} needs datasets; run: pip install datasets pyarrow")


def _counted(place: Path | None, text: str, tokens: int) -> int:
    """Tokens of a text, by a tokenizer.json beside the model; as many as are wanted where it is not there."""
    file = None if place is None else place / "tokenizer.json"
    if file is None or not file.is_file() or len(text) > 20 * tokens:
        return tokens
    from tokenizers import Tokenizer

    try:
        return len(Tokenizer.from_file(str(file)).encode(text, add_special_tokens=False).ids)
    except Exception:  # a damaged file: loading the model will say how
        return tokens
