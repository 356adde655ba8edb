"""The tensors of a GGUF file, by the names that transformers gives them in the model.

Only the header is read when a file is opened; a tensor is unpacked when it is asked for, to the floats that
transformers' own loading gives.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from natprec.errors import ModelError
from natprec.models.gguf_architectures import ARCHITECTURES
from natprec.models.gguf_files import GGUFHeader, GGUFTensor
from natprec.models.stored import empty_model, hollowed, same_tensors
from natprec.models.weights import InMemory, Weights, wrong_shape
from natprec.tasks import Task

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel


class GGUFTensors:
    """A model's parameters as they lie in a GGUF file.

    Attributes:
        parts: name in the model → the tensor in the file.
        missing: names in the model that the file has nothing for.
    """

    def __init__(self, header: GGUFHeader, model: PreTrainedModel) -> None:
        """Find out what is where; `model`, which may be on the meta device, is tied as its configuration says.

        Raises:
            ModelError: a tensor has another shape than the model's.
        """
        self._model, self._known = model, ARCHITECTURES[model.config.model_type]
        model.tie_weights()
        stored = {tensor.name: tensor for tensor in header.tensors}
        names = self._known.tensor_names(model)
        wanted = model.state_dict()
        own = {name: stored[label] for name, label in names.items() if label in stored}
        for name, tensor in own.items():
            if tensor.shape != tuple(wanted[name].shape):
                raise wrong_shape(name, tensor.shape, tuple(wanted[name].shape))
        self.parts: dict[str, GGUFTensor] = own | same_tensors(model, own)
        self.missing = wanted.keys() - self.parts.keys()

    def tensor(self, name: str) -> Tensor:
        """One tensor in float32.

        Raises:
            ModelError: the file has gone or changed since it was opened.
        """
        from gguf import dequantize

        part = self.parts[name]
        try:
            stored = np.fromfile(part.file, np.uint8, part.nbytes, offset=part.offset)
        except OSError as error:
            raise ModelError(
                f"weights file {str(part.file)!r} cannot be read any more ({error}); put it back and add --resume"
            ) from error
        rows = dequantize(stored.reshape(*part.shape[:-1], -1), part.type).reshape(part.shape)
        return torch.from_numpy(np.ascontiguousarray(self._known.in_model(name, rows, self._model), np.float32))


def is_known(header: GGUFHeader) -> bool:
    """Whether a file is of a model whose names and layout are known here, one tensor for each of the model's."""
    return header.architecture in {each.name for each in ARCHITECTURES.values() if not each.experts}


def open_gguf(
    header: GGUFHeader, config: PreTrainedConfig, task: Task, device: torch.device | None
) -> tuple[PreTrainedModel, Weights, set[str]]:
    """The model of a GGUF file, where its weights are, and what the file lacks.

    It takes a tenth of the time of transformers' own loading, which parses all metadata once more.

    Args:
        device: where weights come to when their turn comes; None: all are in memory, on the CPU.
    """
    model = empty_model(config, task, trust=False)
    stored = GGUFTensors(header, model)
    lacking = set(stored.missing)
    if device is not None:
        return model, hollowed(model, stored, lacking, device), lacking
    values = {name: stored.tensor(name) for name, _ in model.named_parameters() if name in stored.parts}
    model.load_state_dict(values, strict=False, assign=True)
    model.tie_weights()
    return model, InMemory(), lacking
