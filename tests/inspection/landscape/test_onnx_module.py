"""A network in an ONNX file computes what its operators say, and its Conv and Gemm are layers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional

from natprec.errors import ModelError

onnx = pytest.importorskip("onnx")


def weights(*shape: int) -> np.ndarray:
    return np.random.default_rng(len(shape)).standard_normal(shape).astype(np.float32)


def written(path: Path, nodes: list[Any], constants: dict[str, np.ndarray]) -> Path:
    kept = [onnx.numpy_helper.from_array(value, name) for name, value in constants.items()]
    given = [onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, None)]
    out = [onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, None)]
    onnx.save(onnx.helper.make_model(onnx.helper.make_graph(nodes, "graph", given, out, kept)), str(path))
    return path


def test_a_network_computes_what_its_file_says(tmp_path: Path) -> None:
    from natprec.inspection.landscape.onnx_module import OnnxModule

    node = onnx.helper.make_node
    conv = {"pads": [1, 1, 1, 1], "strides": [2, 2], "dilations": [1, 1], "group": 1}
    constants = {"k": weights(4, 2, 3, 3), "b": weights(4), "w": weights(5, 64), "c": weights(5),
                 "shape": np.array([0, -1], dtype=np.int64)}  # fmt: skip
    nodes = [
        node("Conv", ["x", "k", "b"], ["h"], **conv), node("Sigmoid", ["h"], ["s"]), node("Mul", ["h", "s"], ["m"]),
        node("Reshape", ["m", "shape"], ["f"]), node("Gemm", ["f", "w", "c"], ["g"], transB=1),
        node("Softmax", ["g"], ["y"], axis=-1),
    ]  # fmt: skip
    module = OnnxModule(written(tmp_path / "net.onnx", nodes, constants))
    x = torch.randn(3, 2, 8, 8)
    own = {name: torch.from_numpy(value) for name, value in constants.items()}
    hidden = functional.silu(functional.conv2d(x, own["k"], own["b"], 2, 1)).flatten(1)
    expected = functional.linear(hidden, own["w"], own["c"]).softmax(-1)
    with torch.no_grad():
        assert torch.allclose(module(x=x), expected, atol=1e-6)
    assert [type(each).__name__ for each in module.layers.values()] == ["Conv2d", "Linear"]


def test_an_operator_that_is_not_known_is_named(tmp_path: Path) -> None:
    from natprec.inspection.landscape.onnx_module import OnnxModule

    file = written(tmp_path / "net.onnx", [onnx.helper.make_node("Celu", ["x"], ["y"])], {})
    with pytest.raises(ModelError, match="'Celu'"):
        OnnxModule(file)
