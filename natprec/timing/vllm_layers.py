"""vLLM's own linear layers in this process: the kernel that vLLM chooses for a format and a shape, on its GPU.

A `ReplicatedLinear` is made under the `quantization_config` that natprec writes for such a layer, filled with codes as
a checkpoint has them, and made ready by its own method, as after loading. Written for vLLM 0.25.1 to 0.33.0.
"""

from __future__ import annotations

import contextlib
import importlib
import tempfile
from collections.abc import Iterator
from typing import Any

import torch

from natprec.checkpoints.packed_weights import packed
from natprec.costs.model import Product
from natprec.errors import InputError
from natprec.formats import engine_profile
from natprec.formats.compressed_tensors import arguments, container
from natprec.timing.measure import Settings
from natprec.timing.products import MOST_COPIES, made_up
from natprec.utils.installed import require

DTYPE = torch.bfloat16
"""Of inputs and scales."""

NAME = "layer"


def refuse_absent(device: torch.device) -> None:
    """Stop where vLLM's layers cannot be run.

    Raises:
        InputError: vLLM is not installed, or there is no GPU.
    """
    require("vllm", "engine 'vllm': its own layers are timed", "run natprec costs where it is, or use --engine natprec")
    if device.type != "cuda":
        raise InputError(
            f"engine 'vllm': its kernels run on a GPU, and the device is {str(device)!r}; use --device cuda"
        )


@contextlib.contextmanager
def process() -> Iterator[None]:
    """What vLLM's layers ask for: a configuration, and a group of one process."""
    config, distributed = importlib.import_module("vllm.config"), importlib.import_module("vllm.distributed")
    with tempfile.TemporaryDirectory(prefix="natprec-") as folder, config.set_current_vllm_config(config.VllmConfig()):
        distributed.init_distributed_environment(
            world_size=1, rank=0, local_rank=0, distributed_init_method=f"file://{folder}/rendezvous"
        )
        distributed.initialize_model_parallel(1)
        try:
            yield
        finally:
            distributed.destroy_model_parallel()
            distributed.destroy_distributed_environment()


class VllmLayer:
    """A product of vLLM's; used within `process`."""

    def __init__(self, product: Product, settings: Settings, working_set: float) -> None:
        first, size = _layer(product, settings.device)
        count = min(MOST_COPIES, max(1, int(working_set / max(1, size))))
        self._layers = [first, *(_layer(product, settings.device)[0] for _ in range(count - 1))]
        self.copies, self.call = len(self._layers), 0.0
        scheme = getattr(first, "scheme", None)
        kernel = getattr(scheme, "kernel", None) or getattr(scheme, "fp8_linear", None) or scheme or first.quant_method
        self.kernel = type(kernel).__name__
        self._x = torch.randn(product.tokens, product.columns, device=settings.device, dtype=DTYPE)
        self._at = 0

    @torch.inference_mode()
    def __call__(self, times: int) -> None:
        """See `natprec.timing.measure.Runner`."""
        for _ in range(times):
            self._layers[self._at](self._x)
            self._at = (self._at + 1) % self.copies


def _layer(product: Product, device: torch.device) -> tuple[Any, int]:
    """A layer with its weight, and the bytes of that."""
    linear = importlib.import_module("vllm.model_executor.layers.linear")
    quantization = None
    tensors = {f"{NAME}.weight": torch.randn(product.rows, product.columns).to(DTYPE)}
    if product.weight is not None:
        reader = importlib.import_module(
            "vllm.model_executor.layers.quantization.compressed_tensors.compressed_tensors"
        )
        int8 = product.inputs is not None and product.weight in engine_profile("vllm").per_channel()
        CompressedTensorsConfig = reader.CompressedTensorsConfig
        quantization = CompressedTensorsConfig.from_config(_described(product, int8))
        tensors = packed([NAME], made_up(product.weight, product.rows, product.columns), int8, DTYPE)
    with torch.device(device):
        layer = linear.ReplicatedLinear(
            product.columns, product.rows, bias=False, params_dtype=DTYPE, quant_config=quantization, prefix=NAME,
            return_bias=False,
        )  # fmt: skip
    own = dict(layer.named_parameters())
    for name, value in tensors.items():
        parameter = own.get(name.removeprefix(f"{NAME}."))
        if parameter is None:
            continue  # the shape, which vLLM knows
        if parameter.numel() != value.numel():
            raise InputError(
                f"vLLM's layer for {product.formats} has {name} of {tuple(parameter.shape)}, natprec one of "
                f"{tuple(value.shape)}; this version of vLLM is not one that natprec can time"
            )
        parameter.data.copy_(value.reshape(parameter.shape).to(device))
    layer.quant_method.process_weights_after_loading(layer)
    return layer.eval(), sum(each.numel() * each.element_size() for each in tensors.values())


def _described(product: Product, int8: bool) -> dict[str, Any]:
    """The `quantization_config` of a checkpoint that has this layer alone."""
    assert product.weight is not None
    group = {
        "targets": ["Linear"], "format": container(product.weight, int8), "weights": arguments(product.weight),
        "input_activations": arguments(product.inputs) if product.inputs else None, "output_activations": None,
    }  # fmt: skip
    return {
        "quant_method": "compressed-tensors", "format": group["format"], "quantization_status": "compressed",
        "ignore": [], "config_groups": {"group_0": group},
    }  # fmt: skip
