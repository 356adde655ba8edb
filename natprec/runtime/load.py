"""A checkpoint as a model that runs on its codes.

The model of transformers is built without weights. Then its Linears and embeddings are replaced one by one by
modules on packed codes, each with the kernel that the table gives it; no dense copy of a quantized weight is ever kept.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from natprec.checkpoints.code_reader import Checkpoint
from natprec.checkpoints.four_bit_reader import is_four_bit
from natprec.errors import InputError, ModelError
from natprec.models.devices import quiet, usable_device
from natprec.models.disk_names import DiskNames
from natprec.models.experts import take_apart
from natprec.models.hub import checkpoint_path
from natprec.models.model_files import explained, read_generation_config, task_of
from natprec.models.pipelines import INDEX
from natprec.models.processors import read_processor
from natprec.models.stored import empty_model
from natprec.models.trust import config_of
from natprec.runtime.build import Builder, Chosen
from natprec.runtime.kernels.kernel import Kernel
from natprec.runtime.replacements import Replaced, replace
from natprec.tasks import Task
from natprec.tasks.task import positions_of


@dataclass(frozen=True)
class Runnable:
    """A loaded checkpoint; call it like the model of transformers that it is.

    Attributes:
        model: float32 activations, weights as codes.
        tokenizer: the one in the folder; of a model of images or speech, what makes these ready.
        kernels: module → what runs it.
        task: what it is for.
        device: where it computes, and where its inputs must be.
        replaced: what runs otherwise than as transformers' modules.
    """

    model: Any
    tokenizer: Any
    kernels: dict[str, Chosen]
    task: Task
    device: torch.device
    replaced: Replaced = field(default_factory=Replaced)

    @property
    def context(self) -> int | None:
        """Tokens of a prompt and its answer together, at most; None where the model bounds none."""
        return positions_of(self.model.config.get_text_config())

    @property
    def resident_bytes(self) -> int:
        """Bytes of all weights and buffers in memory, shared ones once."""
        tensors = [*self.model.parameters(), *self.model.buffers()]
        storages = {_place(tensor): _bytes(tensor) for tensor in tensors}
        return sum(storages.values())

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The model's forward."""
        return self.model(*args, **kwargs)

    def read(self, ids: Tensor, past: Any = None) -> tuple[Tensor, Any]:
        """Read tokens after those whose keys and values are `past`.

        Args:
            ids: (batch, tokens).
        Returns:
            Logits (batch, vocabulary) of what follows, and the keys and values of all tokens.
        Raises:
            ModelError: the model keeps none, so that each token would be read as if it were the first.
        """
        output = self(input_ids=ids, past_key_values=past, use_cache=True, logits_to_keep=1, return_dict=True)
        if getattr(output, "past_key_values", None) is None:
            raise ModelError(
                f"{type(self.model).__name__} keeps no keys and values of the tokens before, from which natprec would "
                "go on; run it by transformers' own generate"
            )
        return output.logits[:, -1], output.past_key_values


def load(
    folder: str | Path, *, device: str = "cpu", kernels: tuple[Kernel, ...] | None = None,
    trust_remote_code: bool = False,
) -> Runnable:  # fmt: skip
    """Open a compressed-tensors checkpoint for running. Its codes are packed on the CPU, then moved.

    Args:
        folder: as `natprec quantize` or another quantizer wrote it; or its id on the Hub, with `@revision` or without.
        device: as torch spells it: 'cpu', 'cuda', 'cuda:1'.
        kernels: what may run a layer, the preferred first; else the device's own.
        trust_remote_code: run Python that comes with the checkpoint; never asked interactively.
    Raises:
        InputError: no such checkpoint, or no such device.
        ModelError: a file or tensor is missing or damaged, or a layer needs a kernel that there is none of.
    """
    folder, target = checkpoint_path(folder), usable_device(device)
    if (folder / INDEX).is_file():
        raise InputError(
            f"checkpoint {str(folder)!r} is a pipeline of diffusers, which writes no text; open it from Python: "
            "natprec.load(FOLDER)"
        )
    if is_four_bit(folder):
        raise InputError(
            f"checkpoint {str(folder)!r} is one of bitsandbytes, which natprec's runtime has no kernels for; load it "
            "with transformers, or quantize with --engine natprec"
        )
    checkpoint = Checkpoint(folder)
    with quiet(), explained(str(folder)):
        config = config_of(folder, trust_remote_code)
        del config.quantization_config
        task = task_of(str(folder), config)
        model = empty_model(config, task, trust_remote_code)
        model.tie_weights()  # again: without weights each of them was registered apart
        count = model.num_parameters()
        take_apart(model)
        checkpoint.rename(DiskNames(model))
        read_generation_config(model, folder)
        tokenizer = read_processor(task, str(folder), None, trust_remote_code, config)
    builder = Builder(checkpoint, model, target.type, kernels)
    builder.replace_all()
    builder.fill_the_rest(task)
    model.eval().requires_grad_(False).to(target)
    answers: Any = model
    answers.tie_weights, answers.num_parameters = _tied, partial(_counted, count)
    return Runnable(model, tokenizer, builder.chosen, task, target, replace(model, causal=task.generates))


def _tied(*args: Any, **kwargs: Any) -> None:
    """Instead of transformers' `tie_weights`, which looks for parameters: weights of one tensor are one module here."""


def _counted(count: int, *args: Any, **kwargs: Any) -> int:
    """Instead of transformers' `num_parameters`, which counts no codes."""
    return count


def _place(tensor: Tensor) -> int:
    """The same for tensors that share memory; oneDNN's opaque copies share theirs with none."""
    return id(tensor) if tensor.is_mkldnn else tensor.untyped_storage().data_ptr()


def _bytes(tensor: Tensor) -> int:
    """Of a tensor's elements."""
    return tensor.numel() * tensor.element_size()
