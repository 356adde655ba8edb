"""NVIDIA Model Optimizer's AutoQuantize: a width for each layer, searched by a gradient score.

Symmetric integers in groups, as its custom formats allow; activations stay at 16 bits. Its exporter has no
such formats, so nothing is written: the bytes are those of densely packed codes with a 16-bit scale per
group. What the uniform peers spend on zero points, it may spend on codes. An encoder has no loss to differentiate: a
random projection of its embedding takes its place.

With `formats`, it chooses from NVFP4, float8 and 16 bits, of weights alone, at the bits of NVFP4 on average. It rounds
to NVFP4 on CUDA alone; its quantizer is given its own packing and unpacking (`NVFP4QTensor`), which run anywhere.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torch import Tensor

PACKAGES = {"nvidia-modelopt": "modelopt.torch.quantization"}
WIDTHS = (2, 3, 4, 6, 8)
NVFP4_BITS = 4.5
BACKEND = "nvfp4-unpacked"
FLOATS = {
    "nvfp4": {
        "num_bits": (2, 1),
        "block_sizes": {-1: 16, "type": "dynamic", "scale_bits": (4, 3)},
        "effective_bits": NVFP4_BITS,
        "backend": BACKEND,
    },
    "fp8-channel": {"num_bits": (4, 3), "axis": 0},
}
"""natprec's name of a format → its quantizer here."""


def quantize(job: Any, model: Any, ids: Tensor) -> Any:
    """The searched model, whose weights are rounded in each forward."""
    import modelopt.torch.quantization as mtq
    from modelopt.torch.quantization.nn import register_quant_backend

    def config(quantizer: dict[str, Any]) -> dict[str, Any]:
        return {
            "quant_cfg": [
                {"quantizer_name": "*", "enable": False},
                {"quantizer_name": "*weight_quantizer", "cfg": {**quantizer, "enable": True}},
            ],
            "algorithm": "max",
        }

    if chosen := job.settings.get("formats"):
        register_quant_backend(BACKEND, _nvfp4)
        average, quantizers = NVFP4_BITS, [FLOATS[name] for name in chosen]
    else:
        average = job.bits + job.bits / job.group_size
        widths = [bits for bits in WIDTHS if bits >= job.bits - 1]
        quantizers = [{"num_bits": bits, "block_sizes": {-1: job.group_size}} for bits in widths]
    causal = job.kind == "causal"
    model.requires_grad_(True)
    searched, _ = mtq.auto_quantize(
        model,
        constraints={
            "effective_bits": average,
            "cost": {"excluded_module_name_patterns": ["*lm_head*"]},
        },
        quantization_formats=[config(each) for each in quantizers],
        data_loader=[{"input_ids": rows, **({"labels": rows} if causal else {})} for rows in ids.split(1)],
        forward_step=lambda net, batch: net(**batch, **({"use_cache": False} if causal else {})),
        loss_func=(lambda output, batch: output.loss) if causal else projection,
        disabled_layers=["*lm_head*"],
        num_calib_steps=len(ids),
        num_score_steps=len(ids),
    )
    return searched


def projection(output: Any, batch: Any) -> Tensor:
    """What stands for a loss where the model has none: a random direction of an encoder's unit mean of tokens, the
    same at each call.
    """
    import torch

    mean = output.last_hidden_state.mean(1)
    direction = torch.randn(mean.shape[-1], generator=torch.Generator().manual_seed(0)).to(mean)
    return (torch.nn.functional.normalize(mean, dim=-1) @ direction).sum()


def save(job: Any, done: Any, folder: Path) -> None:
    """The widths that were chosen, for the reader; see `report` for the bytes."""
    widths = {name: _bits(module) for name, module in _rounded(done)}
    (folder / "widths.json").write_text(json.dumps(widths, indent=2))


def dense(job: Any, done: Any, folder: Path) -> Iterator[tuple[str, Tensor]]:
    """The weights as its own quantizers round them; the rest at 16 bits."""
    import torch

    rounded = dict(_rounded(done))
    with torch.no_grad():
        for name, value in done.state_dict().items():
            owner, _, own = name.rpartition(".")
            if own == "weight" and owner in rounded:
                yield name, rounded[owner].weight_quantizer(value.float())
            elif "_quantizer" not in name:
                yield name, value.to(job.dtype)


def report(job: Any, done: Any) -> dict[str, Any]:
    """Bytes by counting, ties once."""
    quantized = {id(module.weight): (module.weight, _bits(module)) for _, module in _rounded(done)}
    others = sum(value.numel() for value in done.parameters() if id(value) not in quantized)
    bits = sum(_stored_bits(weight, width, job.group_size) for weight, width in quantized.values())
    return {
        "stored_bytes": round(bits / 8 + 2 * others),
        "bits_per_weight": bits / sum(weight.numel() for weight, _ in quantized.values()),
    }


def _stored_bits(weight: Tensor, width: int | list[int], group_size: int) -> float:
    """Codes and scales: 16 bits for each group of integers and each channel of float8; 8 for 16 weights of NVFP4."""
    if width == [2, 1]:
        return weight.numel() * NVFP4_BITS + 32
    if width == [4, 3]:
        return weight.numel() * 8 + len(weight) * 16
    assert isinstance(width, int)
    return weight.numel() * (width + 16 / group_size)


def _nvfp4(inputs: Tensor, quantizer: Any) -> Tensor:
    """What its own file would hold, as floats; gradients pass through."""
    from modelopt.torch.quantization.qtensor import NVFP4QTensor

    size = quantizer.block_sizes[-1]
    packed, scale, outer = NVFP4QTensor.quantize(inputs.detach().float().clone(), size)
    values = packed.dequantize(inputs.dtype, scale=scale, double_scale=outer, block_sizes={-1: size})
    return inputs + (values - inputs).detach()


def _rounded(model: Any) -> Iterator[tuple[str, Any]]:
    for name, module in model.named_modules():
        quantizer = getattr(module, "weight_quantizer", None)
        if quantizer is not None and quantizer.is_enabled:
            yield name, module


def _bits(module: Any) -> int | list[int]:
    """Of integers, or exponent and mantissa."""
    bits = module.weight_quantizer.num_bits
    return list(bits) if isinstance(bits, tuple) else int(bits)
