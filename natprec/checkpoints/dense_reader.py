"""Opening a checkpoint that natprec wrote, as its engine would see it."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from natprec.checkpoints.flows import round_as_written, weights_only
from natprec.checkpoints.four_bit_reader import FourBit, is_four_bit
from natprec.checkpoints.gguf import FILE_NAME
from natprec.checkpoints.trial import unlike
from natprec.checkpoints.unpacked import Unpacked, lacking, refuse_bad_scales, tensor_files
from natprec.errors import ModelError, NatprecError, first_line
from natprec.formats import Format, engine_profile
from natprec.models.checksums import refuse_damaged
from natprec.models.devices import quiet
from natprec.models.experts import take_apart
from natprec.models.headers import read_stored
from natprec.models.loading import load_model
from natprec.models.model_files import task_of, weight_files
from natprec.models.patterns import MARK
from natprec.models.segments import SegmentedModel
from natprec.models.stored import empty_model, hollowed
from natprec.models.stored_codes import refuse_other_formats
from natprec.models.stored_config import StoredConfig, read_description
from natprec.models.trust import config_of, model_of, unfilled_model
from natprec.tasks import Task

UNPACKED = "transformers does not load such a checkpoint ({}), so natprec judges it by unpacking the codes itself"

IN_BFLOAT16 = ("nvfp4-pack-quantized", "mxfp4-pack-quantized", "mxfp6-pack-quantized", "mxfp8-quantized")
"""Containers whose weights the library makes dense in bfloat16, whatever a model's dtype is: with float32 activations
transformers stops there, and NVFP4's values are rounded once more."""


def load_quantized(
    folder: Path,
    engine: str = "vllm",
    trust_remote_code: bool = False,
    tried: bool = True,
    note: Callable[[str], None] = lambda line: None,
    running: Mapping[str, Format | None] | None = None,
) -> nn.Module:
    """The checkpoint's model in float32, with reconstructed weights; activations are rounded as it runs.

    Plain transformers loads it, a GGUF file too; where transformers cannot (zero points or packed embeddings, from
    the `natprec` engine; experts of several formats), the codes are unpacked here with the compressed-tensors library.
    So are all experts, which transformers would round to 16 bits once more, and what it turns out not to load. Where it
    is the engine, it must load everything.

    Args:
        engine: whose rule rounds activations: transformers' own library where it is `transformers` that will run them.
        trust_remote_code: run Python that comes with the checkpoint.
        tried: whether transformers is asked at all, unless it is the engine.
        note: told if it was asked and failed.
        running: see `natprec.checkpoints.flows.round_as_written`.
    Raises:
        InputError: the folder is no checkpoint.
        ModelError: it is damaged, or cannot be loaded; says what transformers said.
    """
    if (folder / FILE_NAME).is_file():
        return load_model(str(folder / FILE_NAME), plain=True).model
    if is_four_bit(folder):
        with _explained(folder), quiet(stderr=True):
            refuse_damaged(weight_files(folder), ours=(folder / "plan.json").is_file())
            return _filled(folder, trust_remote_code, lambda model: FourBit(folder, model))
    stored, profile, trust = _config(folder), engine_profile(engine), trust_remote_code
    why: str | None = None
    with _explained(folder), quiet(stderr=True):  # the libraries' own bars cannot be switched off
        if engine == "transformers":
            return _plain(stored, stored.described, trust)
        model: nn.Module | None = None
        if tried and not _needs_unpacking(stored):
            try:
                model = _plain(stored, weights_only(stored.described), trust)
            except Exception as error:  # whatever a model's own code raises
                why = first_line(error)
        model = model or _filled(folder, trust, lambda empty: Unpacked(stored, empty))
        round_as_written(model, stored, stored.files, profile, running)
    if why is not None:
        note(UNPACKED.format(why))
    return model


def open_quantized(
    folder: Path,
    original: SegmentedModel,
    device: torch.device,
    engine: str = "vllm",
    trust_remote_code: bool = False,
    running: Mapping[str, Format | None] | None = None,
) -> SegmentedModel:
    """The checkpoint's model with its codes left on disk: each weight is reconstructed when its segment runs.

    Args:
        original: the model that was quantized, whose distortion is taken.
        engine: whose rule rounds activations as the model runs.
        trust_remote_code: run Python that comes with the checkpoint.
        running: see `natprec.checkpoints.flows.round_as_written`.
    Raises:
        InputError: the folder is no checkpoint.
        ModelError: it is damaged, or cannot be loaded.
    """
    if (folder / FILE_NAME).is_file():
        loaded = load_model(str(folder / FILE_NAME), device=str(device), on_disk=True)
        return SegmentedModel(loaded.model, original.shown, original.distortion, loaded.weights)
    described = None if is_four_bit(folder) else _config(folder)
    with _explained(folder), quiet(stderr=True):
        config, task = _dense_config(folder, trust_remote_code)
        model = empty_model(config, task, trust_remote_code)
        model.tie_weights()
        take_apart(model)
        stored = FourBit(folder, model) if described is None else Unpacked(described, model)
        missing = lacking(model, stored.names)
        weights = hollowed(model, stored, missing, device)
        model.eval().requires_grad_(False)
        if described is not None:
            round_as_written(model, described, described.files, engine_profile(engine), running)
        return SegmentedModel(model, original.shown, original.distortion, weights)


def _config(folder: Path) -> StoredConfig:
    """What config.json says of the folder; its files are whole."""
    described = read_description(folder)
    refuse_damaged(weight_files(folder), ours=(folder / "plan.json").is_file())
    return StoredConfig(folder, described, tensor_files(folder))


@contextlib.contextmanager
def _explained(folder: Path) -> Iterator[None]:
    try:
        yield
    except NatprecError:
        raise
    except Exception as error:
        raise ModelError(f"checkpoint {str(folder)!r} cannot be loaded ({error}); quantize again") from error


def _plain(stored: StoredConfig, scheme: Mapping[str, Any], trust: bool) -> nn.Module:
    """As transformers loads the folder if its `quantization_config` is this; it must load everything."""
    folder = stored.folder
    dense_model = empty_model(*_dense_config(folder, trust), trust)
    files, layers = stored.files, dict(dense_model.named_modules())
    refuse_other_formats(files, stored, dense_model)
    for name in (name for name in files if name.endswith(".weight_scale")):
        module = name.rpartition(".")[0]
        group = stored.of(module, module=layers.get(module))
        if group is not None and group.described["weights"].get("type") == "float":
            refuse_bad_scales(group, module, {"weight_scale": read_stored(files[name], name)}, folder)
    config = config_of(folder, trust)
    config.quantization_config = scheme
    task = task_of(str(folder), config)
    model, report = model_of(folder, task, trust, config=config, output_loading_info=True)
    missing = report["missing_keys"]
    if missing and task.does_without(model, missing):
        report = {**report, "missing_keys": ()}
    wrong = unlike(report, dense_model)
    if wrong is not None:
        raise ValueError(f"transformers has tensors {wrong}")
    task.forward(model, task.probe(model))  # the first forward decompresses
    dense: nn.Module = model.eval().requires_grad_(False)
    return dense


def _needs_unpacking(stored: StoredConfig) -> bool:
    """Whether plain transformers would refuse it, or match its regular expressions, for as long as they take."""
    if f'"{MARK}' in json.dumps(stored.described):
        return True
    if any(group.described["weights"].get("symmetric") is False for group in stored.groups):
        return True
    if any(group.container in IN_BFLOAT16 for group in stored.groups):
        return True
    packed = [name.split(".") for name in stored.files if name.endswith(".weight_packed")]
    # embed_tokens, embed_in, word_embeddings; experts
    return any("embed" in name[-2] or "experts" in name for name in packed)


def _dense_config(folder: Path, trust: bool) -> tuple[Any, Task]:
    """The configuration of the model as if it were not quantized, and its task."""
    config = config_of(folder, trust)
    del config.quantization_config
    return config, task_of(str(folder), config)


def _filled(folder: Path, trust: bool, opened: Callable[[nn.Module], Unpacked | FourBit]) -> nn.Module:
    """The dense model, filled by unpacking every module's tensors."""
    config, task = _dense_config(folder, trust)
    model = unfilled_model(config, task, trust)
    take_apart(model)
    stored = opened(model)
    model.load_state_dict({name: stored.tensor(name).float() for name in stored.names}, strict=False)
    model.tie_weights()
    lacking(model, stored.names)
    return model.eval().requires_grad_(False)
