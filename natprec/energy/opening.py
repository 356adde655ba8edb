"""What a run measures: a checkpoint on its codes, or a model of transformers in the 16 bits in which it is stored."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import torch

from natprec.energy.footprint import EXPERT, Footprint
from natprec.errors import InputError
from natprec.models.config_file import FILE, KEY, found_object
from natprec.models.devices import usable_device
from natprec.models.headers import read_headers
from natprec.models.loading import load_model, model_digest
from natprec.models.model_files import weight_files
from natprec.models.places import local_path
from natprec.runtime.load import Runnable, load
from natprec.timing.products import on_chip_bytes

LARGEST_CACHE = 128e6
"""Bytes that any GPU keeps on the chip: of a server it is not known where it computes."""


@dataclass(frozen=True)
class Opened:
    """A model in memory.

    Attributes:
        arithmetic: how its weights are stored.
        digest: 16 hex digits of its weights: of a checkpoint its files' headers and sizes, of a model sampled values.
    """

    runnable: Runnable
    arithmetic: str
    digest: str

    @property
    def sizes(self) -> tuple[int, int, int]:
        """Vocabulary, layers, width."""
        config = self.runnable.model.config.get_text_config()
        return config.vocab_size, config.num_hidden_layers, config.hidden_size


def open_model(name: str, device: str, trust_remote_code: bool) -> Opened:
    """A folder in compressed-tensors format, or else whatever `natprec measure` takes.

    Raises:
        InputError, ModelError: it cannot be loaded.
    """
    folder = Path(name).expanduser()
    if is_checkpoint(folder):
        runnable = load(folder, device=device, trust_remote_code=trust_remote_code)
        formats = sorted({chosen.format for chosen in runnable.kernels.values()})
        return Opened(runnable, ", ".join(formats), files_digest(folder))
    loaded = load_model(name, trust_remote_code=trust_remote_code, device=device)
    digest = model_digest(loaded.model, loaded.weights)
    dtype = loaded.storage_dtype
    loaded.model.to(dtype)  # type: ignore[arg-type]  # transformers' wrapper hides nn.Module.to's signature
    made = Runnable(loaded.model, loaded.tokenizer, {}, loaded.task, usable_device(device))
    return Opened(made, str(dtype).removeprefix("torch."), digest)


def is_checkpoint(folder: Path) -> bool:
    """Whether it is a folder whose config.json names groups of compressed-tensors."""
    return "config_groups" in (found_object(folder / FILE).get(KEY) or {})


def files_digest(folder: Path) -> str:
    """Which files these are, from their sizes and headers."""
    digest = hashlib.sha256()
    for file in weight_files(folder):
        with file.open("rb") as opened:
            start = opened.read(8)
            digest.update(start + opened.read(min(int.from_bytes(start, "little"), 1 << 20)))
        digest.update(f"{file.name} {file.stat().st_size}".encode())
    return digest.hexdigest()[:16]


def stored_footprint(name: str) -> Footprint | None:
    """Of a model that somebody else runs, from the files of its folder; None where it is no folder here.

    Embeddings are left out, tied or not, and of the experts all but those that one token takes: a lower bound.
    """
    folder = Path(name).expanduser()
    if not folder.is_dir():
        return None
    config = found_object(folder / FILE)
    experts = next(
        (config[key] for key in ("num_experts", "num_local_experts", "n_routed_experts") if key in config), 0
    )
    share = config.get("num_experts_per_tok", experts) / experts if experts else 1.0
    total = 0.0
    for key, header in read_headers(weight_files(folder)).items():
        if "embed" in key or len(header.shape) < 2:
            continue
        size = header.elements * _width(header.dtype)
        total += size * (share if EXPERT.search(key) else 1.0)
    return Footprint(max(1, round(total)), None, None, max(LARGEST_CACHE, on_chip_bytes(torch.device("cpu"))))


def sizes_on_disk(name: str) -> tuple[int, int, int] | None:
    """`Opened.sizes` of a folder before it is loaded; None where its config.json does not say, or it is no folder.

    Raises:
        ModelError: a path that leads nowhere.
    """
    path = local_path(name)
    if path is None or not path.is_dir():
        return None
    config = found_object(path / FILE)
    text = config.get("text_config", config)
    found = tuple(text.get(key) for key in ("vocab_size", "num_hidden_layers", "hidden_size"))
    return found if all(isinstance(each, int) for each in found) else None


def refuse_other_sizes(own: tuple[int, int, int] | None, original: tuple[int, int, int] | None) -> None:
    """The original must be able to have become the checkpoint; None: not known yet.

    Raises:
        InputError: their vocabularies or layers differ.
    """
    if own is not None and original is not None and own != original:
        raise InputError(
            f"the checkpoint has {own[0]} tokens and {own[1]} layers of {own[2]}, --model has {original[0]} and "
            f"{original[1]} of {original[2]}; name the model that it was made from"
        )


def _width(dtype: str) -> float:
    digits = "".join(each for each in dtype.split("_")[0] if each.isdigit())
    return int(digits) / 8 if digits else 1.0


def threads() -> int:
    """That torch computes with on the CPU."""
    return torch.get_num_threads()
