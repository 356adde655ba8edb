"""Opening a checkpoint that natprec wrote, as its engine would see it."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from natprec.checkpoints.flows import STATES, round_as_written, weights_only
from natprec.checkpoints.gguf import FILE_NAME
from natprec.checkpoints.trial import unlike
from natprec.errors import InputError, ModelError, NatprecError
from natprec.formats import engine_profile
from natprec.models.checksums import refuse_damaged
from natprec.models.devices import quiet
from natprec.models.disk_names import DiskNames
from natprec.models.experts import take_apart
from natprec.models.layers import known_layer
from natprec.models.loading import load_model
from natprec.models.model_files import first_line, task_of, weight_files
from natprec.models.patterns import MARK, Groups
from natprec.models.segments import SegmentedModel
from natprec.models.stored import empty_model, hollowed, read_stored, stored_names
from natprec.models.stored_codes import in_library_order, refuse_other_formats
from natprec.models.trust import config_of, model_of, unfilled_model
from natprec.tasks import Task

UNPACKED = "transformers does not load such a checkpoint ({}), so natprec judges it by unpacking the codes itself"


def load_quantized(
    folder: Path,
    engine: str = "vllm",
    trust_remote_code: bool = False,
    tried: bool = True,
    note: Callable[[str], None] = lambda line: None,
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
    Raises:
        InputError: the folder is no checkpoint.
        ModelError: it is damaged, or cannot be loaded; says what transformers said.
    """
    if (folder / FILE_NAME).is_file():
        return load_model(str(folder / FILE_NAME), plain=True).model
    scheme, profile, trust = _scheme(folder), engine_profile(engine), trust_remote_code
    why: str | None = None
    with _explained(folder), quiet(stderr=True):  # the libraries' own bars cannot be switched off
        if engine == "transformers":
            return _plain(folder, scheme, trust)
        model: nn.Module | None = None
        if tried and not _needs_unpacking(folder, scheme):
            try:
                model = _plain(folder, weights_only(scheme), trust)
            except Exception as error:  # whatever a model's own code raises
                why = first_line(error)
        model = model or _unpacked(folder, scheme["config_groups"], trust)
        round_as_written(model, scheme, _tensor_files(folder), profile, str(folder))
    if why is not None:
        note(UNPACKED.format(why))
    return model


def open_quantized(
    folder: Path,
    original: SegmentedModel,
    device: torch.device,
    engine: str = "vllm",
    trust_remote_code: bool = False,
) -> SegmentedModel:
    """The checkpoint's model with its codes left on disk: each weight is reconstructed when its segment runs.

    Args:
        original: the model that was quantized, whose distortion is taken.
        engine: whose rule rounds activations as the model runs.
        trust_remote_code: run Python that comes with the checkpoint.
    Raises:
        InputError: the folder is no checkpoint.
        ModelError: it is damaged, or cannot be loaded.
    """
    if (folder / FILE_NAME).is_file():
        loaded = load_model(str(folder / FILE_NAME), device=str(device), on_disk=True)
        return SegmentedModel(loaded.model, loaded.task.probe(loaded.model), original.distortion, loaded.weights)
    scheme = _scheme(folder)
    with _explained(folder), quiet(stderr=True):
        config, task = _dense_config(folder, trust_remote_code)
        model = empty_model(config, task, trust_remote_code)
        model.tie_weights()
        take_apart(model)
        stored = Unpacked(folder, scheme["config_groups"], model)
        missing = _lacking(model, stored.names)
        weights = hollowed(model, stored, missing, device)
        model.eval().requires_grad_(False)
        round_as_written(model, scheme, _tensor_files(folder), engine_profile(engine), str(folder))
        return SegmentedModel(model, task.probe(model), original.distortion, weights)


def _scheme(folder: Path) -> dict[str, Any]:
    """The folder's quantization_config; its files are whole."""
    config_file = folder / "config.json"
    if not config_file.is_file():
        raise InputError(f"{str(folder)!r} is no checkpoint: it has no config.json; give the --out folder of quantize")
    try:
        scheme: dict[str, Any] = json.loads(config_file.read_text())["quantization_config"]
        scheme["config_groups"].values()
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"{str(config_file)!r} describes no quantized checkpoint ({error!r}); quantize again"
        ) from error
    refuse_damaged(weight_files(folder), ours=(folder / "plan.json").is_file())
    return scheme


@contextlib.contextmanager
def _explained(folder: Path) -> Iterator[None]:
    try:
        yield
    except NatprecError:
        raise
    except Exception as error:
        raise ModelError(f"checkpoint {str(folder)!r} cannot be loaded ({error}); quantize again") from error


def _plain(folder: Path, scheme: dict[str, Any], trust: bool) -> nn.Module:
    """As transformers loads the folder if its `quantization_config` is this; it must load everything."""
    files = _tensor_files(folder)
    refuse_other_formats(files, Groups(scheme["config_groups"], files, str(folder)))  # whose patterns end in time
    config = config_of(folder, trust)
    config.quantization_config = scheme
    task = task_of(str(folder), config)
    model, report = model_of(folder, task, trust, config=config, output_loading_info=True)
    missing = report["missing_keys"]
    if missing and task.does_without(model, missing):
        report = {**report, "missing_keys": ()}
    wrong = unlike(report, empty_model(*_dense_config(folder, trust), trust))
    if wrong is not None:
        raise ValueError(f"transformers has tensors {wrong}")
    task.forward(model, task.probe(model))  # the first forward decompresses
    dense: nn.Module = model.eval().requires_grad_(False)
    return dense


def _needs_unpacking(folder: Path, scheme: dict[str, Any]) -> bool:
    """Whether plain transformers would refuse it, or match its regular expressions, for as long as they take."""
    if f'"{MARK}' in json.dumps(scheme):
        return True
    if any(not group["weights"]["symmetric"] for group in scheme["config_groups"].values()):
        return True
    packed = [name.split(".") for name in _tensor_files(folder) if name.endswith(".weight_packed")]
    # embed_tokens, embed_in, word_embeddings; experts
    return any("embed" in name[-2] or "experts" in name for name in packed)


def _tensor_files(folder: Path) -> dict[str, Path]:
    """Tensor name → the file that holds it, without those that are carried along and no part of the model."""
    files = sorted(folder.glob("*.safetensors"))
    return {name: file for file in files for name in stored_names(file, carried=False)}


class Unpacked:
    """A compressed-tensors checkpoint as dense weights, which the library reconstructs one at a time.

    Attributes:
        names: of the tensors, in the model.
    """

    def __init__(self, folder: Path, groups: dict[str, Any], model: nn.Module) -> None:
        """Read the headers.

        Args:
            model: that is to be filled, whose layers say in which form their weights are wanted.
        """
        self._model, in_model = model, DiskNames(model).in_model
        modules: dict[str, dict[str, Path]] = {}
        self._packed: dict[str, tuple[dict[str, Any], str, dict[str, Path]]] = {}
        self._plain: dict[str, tuple[str, Path]] = {}
        files = _tensor_files(folder)
        known = Groups(groups, files, str(folder))
        refuse_other_formats(files, known, in_model)
        for key, file in files.items():
            module, _, leaf = key.rpartition(".")
            modules.setdefault(module, {})[leaf] = file
        for module, own in modules.items():
            name = in_model.get(module, module)
            group = known.of(module) or known.of(name)  # one written for transformers has the model's names
            weight = {leaf: own.pop(leaf) for leaf in list(own) if group is not None and leaf.startswith("weight")}
            if group is not None and "weight_scale" in weight and weight.keys() & {"weight_packed", "weight"}:
                self._packed[f"{name}.weight"] = (group, module, weight)  # else the second use of a tied one
            self._plain |= {
                f"{name}.{leaf}".removeprefix("."): (f"{module}.{leaf}", file) for leaf, file in own.items()
            }
        self.names = [*self._plain, *self._packed]

    def tensor(self, name: str) -> torch.Tensor:
        """One dense tensor."""
        from compressed_tensors.compressors import BaseCompressor
        from compressed_tensors.quantization import QuantizationScheme

        if name in self._plain:
            key, file = self._plain[name]
            return read_stored(file, key)
        group, module, files = self._packed[name]
        own = {leaf: read_stored(file, f"{module}.{leaf}") for leaf, file in files.items()}
        own["weight_scale"] = own["weight_scale"].float()
        if "weight_zero_point" in own:
            own["weight_zero_point"] = in_library_order(own["weight_zero_point"])
        compressor = BaseCompressor.get_value_from_registry(group["format"])
        dense: torch.Tensor = compressor.decompress(own, QuantizationScheme.model_validate(group))["weight"]
        layer = known_layer(self._model.get_submodule(name.removesuffix(".weight")))
        return layer.kind.stored(dense)


def _dense_config(folder: Path, trust: bool) -> tuple[Any, Task]:
    """The configuration of the model as if it were not quantized, and its task."""
    config = config_of(folder, trust)
    del config.quantization_config
    return config, task_of(str(folder), config)


def _unpacked(folder: Path, groups: dict[str, Any], trust: bool) -> nn.Module:
    """The dense model, filled by unpacking every module's tensors."""
    config, task = _dense_config(folder, trust)
    model = unfilled_model(config, task, trust)
    take_apart(model)
    stored = Unpacked(folder, groups, model)
    model.load_state_dict({name: stored.tensor(name).float() for name in stored.names}, strict=False)
    model.tie_weights()
    _lacking(model, stored.names)
    return model.eval().requires_grad_(False)


def _lacking(model: nn.Module, names: Collection[str]) -> set[str]:
    """Tensors of the model that only tied ones stand for.

    Raises:
        ValueError: others are missing, or some of the checkpoint's have no place.
    """
    wanted = set(model.state_dict())
    missing, tied = wanted - set(names), set(getattr(model, "all_tied_weights_keys", None) or {})
    unexpected = {name for name in names if name not in wanted and not name.endswith(tuple(STATES.values()))}
    if unexpected or missing - tied:
        raise ValueError(f"missing {sorted(missing - tied)[:3]}, unexpected {sorted(unexpected)[:3]}")
    return missing
