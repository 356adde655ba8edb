"""vLLM's own code chooses kernels for a pretended GPU, and natprec's rules are compared: no GPU, nothing computed.

    python scripts/vllm_chooser.py VLLM HUMMING REQUIREMENTS --gpu sm90

The first folder holds vLLM's Python (a wheel, unpacked), others what is not installed here of its requirements; of the
kernel libraries, humming-kernels. What is still missing is replaced by empty modules. vLLM's compressed-tensors reader
then finds each layer's scheme, and the scheme's `create_weights` its kernel, for layers of natprec's formats. Pretended
are the platform, that FlashInfer and DeepGEMM are installed, and three questions that vLLM asks its compiled code:
`cutlass_scaled_mm_supports_fp8` (from sm89), `…_block_fp8` (from sm90), `…_fp4` (from sm100).
Where Humming is chosen, vLLM's own rules of falling back say what its inputs are rounded to. Prints JSON: a line for
each layer where both differ; exit code 1 if there is one.
"""

from __future__ import annotations

import argparse
import importlib.abc
import importlib.machinery
import json
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar
from unittest import mock

import torch

from natprec.engines import Layer, Operand
from natprec.engines.vllm import run
from natprec.engines.vllm_rules import NEWEST, VLLM
from natprec.formats import parse_activation, parse_format
from natprec.formats.compressed_tensors import arguments, container
from natprec.formats.gpus import capabilities, generation

STAND_INS = {
    "cuda", "cv2", "deep_gemm", "flashinfer", "librosa", "llguidance", "ray", "soundfile", "tilelang", "torchaudio",
    "vllm", "xgrammar",
}  # fmt: skip
"""Packages that may be missing; of `vllm` only compiled modules are."""

SHAPES = ((1024, 1024), (960, 576), (576, 1536))
PAIRS: tuple[tuple[str, str | None], ...] = (
    *((f"int{bits}-{by}{zeros}", None) for bits in range(2, 9) for by in ("g64", "channel") for zeros in ("", "-asym")),
    ("int4-g32", None), ("int4-g128", "fp8-token"),
    *((f"int{bits}-{by}", "a8-token") for bits in (2, 3, 4, 7, 8) for by in ("g64", "channel")),
    ("int2-g64", "a4-token"),
    ("fp8-channel", None), ("fp8-channel", "fp8-token"), ("fp8-tensor", None), ("fp8-tensor", "fp8-tensor"),
    ("fp8-block128", "fp8-g128"), ("nvfp4", None), ("nvfp4", "nvfp4"), ("mxfp4", None), ("mxfp4", "mxfp4"),
    ("mxfp8", None), ("mxfp8", "mxfp8"),
)  # fmt: skip


class _Anything:
    def __init__(self, *given: Any, **named: Any) -> None:
        pass

    def __init_subclass__(cls, **named: Any) -> None:
        pass

    def __call__(self, *given: Any, **named: Any) -> Any:
        return given[0] if len(given) == 1 and callable(given[0]) else _Anything()

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _Anything()


class _StandIn(types.ModuleType):
    __path__: ClassVar[list[str]] = []

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (_Anything,), {})


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def find_spec(self, name: str, path: Any, target: Any = None) -> Any:
        known = name.partition(".")[0] in STAND_INS
        return importlib.machinery.ModuleSpec(name, self, is_package=True) if known else None

    def create_module(self, spec: Any) -> types.ModuleType:
        return _StandIn(spec.name)

    def exec_module(self, module: types.ModuleType) -> None:
        pass


def pretend(capability: int) -> None:
    """Make vLLM believe in a GPU before its kernels are imported."""
    import vllm.platforms
    from vllm.platforms.cuda import NonNvmlCudaPlatform
    from vllm.platforms.interface import DeviceCapability

    class Pretended(NonNvmlCudaPlatform):  # type: ignore[misc, no-any-unimported]
        @classmethod
        def get_device_capability(cls, device_id: int = 0) -> Any:
            return DeviceCapability(capability // 10, capability % 10)

    vllm.platforms._current_platform = Pretended()
    import vllm.utils.deep_gemm as deep
    import vllm.utils.flashinfer as flash

    for name in dir(flash):
        if name.startswith("has_flashinfer"):
            setattr(flash, name, lambda: True)
    flash.has_flashinfer_fp8_blockscale_gemm = lambda: capability == 90
    deep.has_deep_gemm = lambda: True
    from vllm import _custom_ops as ops

    ops.cutlass_scaled_mm_supports_fp8 = lambda each: each >= 89
    ops.cutlass_scaled_mm_supports_block_fp8 = lambda each: each >= 90
    ops.cutlass_scaled_mm_supports_fp4 = lambda each: each >= 100


def chosen(layer: Layer, described: tuple[dict[str, Any], dict[str, Any] | None]) -> str | None:
    """The kernel of vLLM's own choice, named as natprec does; None where it raises."""
    import vllm.model_executor.kernels.linear as kernels
    from compressed_tensors.quantization import QuantizationArgs
    from vllm.model_executor.layers.quantization.compressed_tensors.compressed_tensors import CompressedTensorsConfig

    config = CompressedTensorsConfig(
        target_scheme_map={}, ignore=[], quant_format=layer.container, kv_cache_scheme=None, config={}
    )
    found: list[str] = []

    def noted(kind: type) -> None:
        found.append(kind.__name__.removesuffix("Kernel").removesuffix("Linear"))
        raise _ChosenError

    weights, inputs = (None if each is None else QuantizationArgs.model_validate(each) for each in described)
    instances = {
        kind: kind.__init__
        for kind in vars(kernels).values()
        if isinstance(kind, type) and kind.__name__.endswith("Kernel")
    }
    for kind in instances:
        kind.__init__ = lambda self, *given, **named: noted(type(self))
    try:
        scheme = config._get_scheme_from_parts(weights, inputs, None, layer.container, "x")
        config._check_scheme_supported(scheme.get_min_capability())
        scheme.create_weights(
            torch.nn.Module(), output_size=sum(layer.rows), input_size=layer.columns,
            output_partition_sizes=[*layer.rows], input_size_per_partition=layer.columns,
            params_dtype=torch.bfloat16, weight_loader=lambda *given: None,
        )  # fmt: skip
    except _ChosenError:
        return found[0]
    except (ValueError, NotImplementedError, RuntimeError, AssertionError):
        return None
    finally:
        for kind, own in instances.items():
            kind.__init__ = own
    return None


def humming_inputs(layer: Layer, kernel: str, capability: int) -> str | None:
    """What vLLM has Humming round the inputs to, by its own rules of falling back; None: they stay at 16 bits."""
    import humming.schema.humming as schemas
    from vllm.model_executor.layers.quantization.utils.humming import schema
    from vllm.model_executor.layers.quantization.utils.quant_utils import kMxfp4Dynamic, kMxfp8Dynamic, kNvfp4Dynamic
    from vllm.utils.humming import BaseInputSchema, BaseWeightSchema, HummingInputSchema

    schemas.current_device = types.SimpleNamespace(sm_version=capability)
    assert layer.weight is not None
    asked, own = layer.inputs, {"quant_method": "humming", "group_size": layer.weight.group or 0}
    keys = {"HummingMxFp4": kMxfp4Dynamic, "HummingMxfp8": kMxfp8Dynamic}
    micro = {"HummingMxFp4": "float4e2m1", "HummingMxfp8": "float8e4m3"}
    if kernel == "HummingNvFp4":
        keys |= {kernel: kNvfp4Dynamic} if asked else {}
        described = {"quant_method": "compressed-tensors", "format": "nvfp4-pack-quantized", "type": "float"}
        described |= {"num_bits": 4, "strategy": "group", "group_size": 16}  # type: ignore[dict-item]
    elif kernel in micro:
        described = own | {"dtype": micro[kernel], "scale_dtype": "float8e8m0", "weight_scale_type": "group"}
    else:
        described = own | {"dtype": f"int{layer.weight.bits}", "has_zero_point": layer.weight.zeros}
    inputs = schema.quant_key_to_input_schema(keys[kernel]) if kernel in keys else HummingInputSchema()
    if kernel == "Humming" and asked is not None and asked.type == "int":
        said = {"num_bits": asked.bits, "type": "int", "strategy": asked.strategy, "symmetric": True, "dynamic": True}
        also = {"group_size": asked.group or 0, "quant_method": "compressed-tensors", "format": "int-quantized"}
        inputs = BaseInputSchema.from_config(said | also)
    weights = BaseWeightSchema.from_config(described)
    found = str(schema.check_and_fallback_input_schema(weights, inputs, torch.bfloat16).a_dtype)
    return {"int8": "a8-token", "int4": "a4-token", "float8e4m3": "fp8-token"}.get(found)


class _ChosenError(Exception):
    """A kernel is made: that is all that is asked."""


def layers() -> Iterator[tuple[Layer, tuple[dict[str, Any], dict[str, Any] | None]]]:
    """Of all pairs and shapes, and what config.json says of each."""
    for weight, inputs in PAIRS:
        fmt = parse_format(weight)
        flowing = None if inputs is None else parse_activation(inputs)
        apart = flowing is not None and not flowing.floating and (weight, flowing.bits) == ("int8-channel", 8)
        described = arguments(fmt), None if flowing is None else arguments(flowing)
        operands = Operand.of(described[0], True), None if described[1] is None else Operand.of(described[1], False)
        for rows, columns in SHAPES:
            if fmt.divides(columns) and not ("block" in weight and rows % 128):
                yield Layer("x", "linear", (rows,), columns, *operands, container(fmt, apart)), described


def main() -> None:
    """Choose, compare, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("wheel", type=Path, nargs="+")
    parser.add_argument("--gpu", required=True)
    options = parser.parse_args()
    (capability,) = capabilities(generation(options.gpu))
    sys.path[:0] = [str(options.wheel[0])]
    sys.path += [str(each) for each in options.wheel[1:]]
    sys.meta_path.append(_Finder())
    pretend(capability)
    import vllm.config
    import vllm.distributed.parallel_state as parallel

    parallel._TP = types.SimpleNamespace(world_size=1, rank_in_group=0)
    model = types.SimpleNamespace(
        dtype=torch.bfloat16, hf_text_config=types.SimpleNamespace(model_type="llama"), quantization_config=None
    )
    kernel = types.SimpleNamespace(linear_backend="auto", linear_backend_per_quant=None)
    pretended = types.SimpleNamespace(model_config=model, kernel_config=kernel)
    compared, compared_inputs, different = 0, 0, []
    torch.set_default_dtype(torch.bfloat16)
    with (
        mock.patch.object(vllm.config, "get_current_vllm_config", return_value=pretended),
        mock.patch.object(vllm.config, "get_current_vllm_config_or_none", return_value=pretended),
    ):
        for layer, described in layers():
            own, theirs = run(layer, capability, VLLM[NEWEST]), chosen(layer, described)
            compared += 1
            refused_later = own.kernel is None and theirs == "CutlassInt8ScaledMM" and capability >= 100
            if own.kernel != theirs and not refused_later:
                different.append([layer.says, *layer.rows, layer.columns, own.kernel, theirs])
            elif theirs is not None and theirs.startswith("Humming") and "ScaledMM" not in theirs and own.runs:
                rounded, inputs = own.runs.partition("/")[2] or None, humming_inputs(layer, theirs, capability)
                compared_inputs += 1
                if rounded != inputs:
                    different.append([layer.says, *layer.rows, layer.columns, own.runs, inputs])
    counts = {"kernels": compared, "humming_inputs": compared_inputs}
    print(json.dumps({"vllm": NEWEST, "gpu": options.gpu, **counts, "different": different}, indent=1))
    sys.exit(bool(different))


if __name__ == "__main__":
    main()
