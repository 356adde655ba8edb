"""vLLM's layers as natprec fills and calls them, with a made-up vLLM that multiplies what it was given."""

from __future__ import annotations

import contextlib
import importlib.machinery
import sys
import types
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from natprec.costs.model import Product
from natprec.formats import activation, parse_format
from natprec.timing.measure import Settings, measure_times
from natprec.timing.products import made_up
from natprec.timing.vllm_layers import VllmLayer, process
from natprec.utils.progress import Stages

SETTINGS = Settings(torch.device("cpu"), repeat=2, milliseconds=0.1)


class Method:
    """What makes a layer ready: from packed codes to the dense weight that they stand for."""

    def __init__(self, config: Any) -> None:
        self.config = config

    def process_weights_after_loading(self, layer: Any) -> None:
        if self.config is not None:
            from compressed_tensors.compressors import BaseCompressor
            from compressed_tensors.quantization import QuantizationScheme

            group = self.config["config_groups"]["group_0"]
            scheme = QuantizationScheme.model_validate(group)
            tensors = {name: parameter.data for name, parameter in layer.named_parameters()}
            if "weight_packed" in tensors:
                tensors["weight_shape"] = torch.tensor([layer.rows, layer.columns])
            layer.dense = BaseCompressor.get_value_from_registry(group["format"]).decompress(tensors, scheme)["weight"]
        layer.ready = True


class ReplicatedLinear(nn.Module):
    """As vLLM's: parameters by the configuration, and `quant_method`."""

    def __init__(self, columns: int, rows: int, *, bias: bool, params_dtype: Any, quant_config: Any, prefix: str,
                 return_bias: bool) -> None:  # fmt: skip
        super().__init__()
        assert (bias, return_bias) == (False, False)
        self.rows, self.columns, self.quant_method, self.ready = rows, columns, Method(quant_config), False
        if quant_config is None:
            self.weight = nn.Parameter(torch.zeros(rows, columns, dtype=params_dtype), requires_grad=False)
            return
        weights = quant_config["config_groups"]["group_0"]["weights"]
        groups = columns // weights["group_size"] if weights["strategy"] == "group" else 1
        scale = torch.zeros(rows, groups, dtype=params_dtype)
        self.weight_scale = nn.Parameter(scale, requires_grad=False)
        if quant_config["format"] == "int-quantized":
            self.weight = nn.Parameter(torch.zeros(rows, columns, dtype=torch.int8), requires_grad=False)
        else:
            words = torch.zeros(rows, columns * weights["num_bits"] // 32, dtype=torch.int32)
            self.weight_packed = nn.Parameter(words, requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        assert self.ready
        weight = self.weight if self.quant_method.config is None else self.dense
        return x.float() @ weight.float().T


@pytest.fixture
def vllm(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    calls: list[str] = []

    def module(name: str, **content: Any) -> None:
        made = types.ModuleType(name)
        made.__spec__ = importlib.machinery.ModuleSpec(name, None)
        made.__dict__.update(content)
        monkeypatch.setitem(sys.modules, name, made)

    def noted(name: str) -> Any:
        return lambda *arguments, **options: calls.append(name)

    module("vllm")
    module("vllm.config", VllmConfig=dict, set_current_vllm_config=lambda config: contextlib.nullcontext())
    names = (
        "init_distributed_environment", "initialize_model_parallel", "destroy_model_parallel",
        "destroy_distributed_environment",
    )  # fmt: skip
    module("vllm.distributed", **{name: noted(name) for name in names})
    for parent in ("model_executor", "model_executor.layers", "model_executor.layers.quantization",
                   "model_executor.layers.quantization.compressed_tensors"):  # fmt: skip
        module(f"vllm.{parent}")
    module("vllm.model_executor.layers.linear", ReplicatedLinear=ReplicatedLinear)
    reader = types.SimpleNamespace(from_config=lambda described: described)
    name = "vllm.model_executor.layers.quantization.compressed_tensors.compressed_tensors"
    module(name, CompressedTensorsConfig=reader)
    return calls


@pytest.mark.parametrize(
    ("name", "inputs"), [("int4-g64", None), ("int3-channel", None), ("int8-channel", activation(8)), (None, None)]
)
def test_a_layer_multiplies_by_the_codes_it_was_given(vllm: list[str], name: str | None, inputs: Any) -> None:
    weight = None if name is None else parse_format(name)
    product = Product(weight, inputs, 96, 128, 3)
    layer = VllmLayer(product, SETTINGS, 1.0)
    assert layer.copies == 1
    layer(2)
    if weight is None:
        return
    x = torch.randn(2, 128, dtype=torch.bfloat16)
    expected = x.float() @ made_up(weight, 96, 128).dequantize().T
    assert torch.allclose(layer._layers[0](x), expected, atol=1e-2)


def test_a_process_is_set_up_and_taken_down(vllm: list[str]) -> None:
    with process():
        assert vllm == ["init_distributed_environment", "initialize_model_parallel"]
        rows = measure_times([Product(None, None, 64, 64, 1)], SETTINGS, Stages(quiet=True), VllmLayer)
    assert vllm[2:] == ["destroy_model_parallel", "destroy_distributed_environment"]
    assert rows[0]["kernel"] == "Method"
