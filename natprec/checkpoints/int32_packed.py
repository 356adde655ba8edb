"""Checkpoints of GPTQ's and AWQ's own containers as dense weights: integer codes, packed into int32.

    gptq   qweight (columns · bits / 32, rows), each column of it a stream of bits; zero points one too low, unless v2
    awq    qweight (columns, rows / 8), rows in the order 0 2 4 6 1 3 5 7 within an int32

Both store qzeros (groups, rows · bits / 32) and scales (groups, rows), and weight = scale · (code - zero point). GPTQ's
g_idx names the group of each column. AutoRound writes either, or its own under the name auto-round. The layouts are
those of AutoGPTQ 0.7 and AutoAWQ 0.2.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from natprec.checkpoints.unpacked import lacking, tensor_files
from natprec.errors import ModelError
from natprec.models.headers import read_stored
from natprec.models.trust import config_of, unfilled_model
from natprec.tasks import Task

GPTQ, AWQ = "gptq", "awq"
WIDTHS = {GPTQ: (2, 3, 4, 8), AWQ: (4,)}
ORDER = (0, 4, 1, 5, 2, 6, 3, 7)
"""Where AWQ puts row 0, 1, 2 … of eight."""

CODES = "qweight"


def container_of(described: dict[str, Any]) -> str | None:
    """Which of both a `quantization_config` describes; None: neither, or a variant that is not read here."""
    method, bits = described.get("quant_method"), described.get("bits", described.get("w_bit"))
    if method == "auto-round":
        method = str(described.get("packing_format", "")).removeprefix("auto_round:").removeprefix("auto_")
    known = method in WIDTHS and bits in WIDTHS[method]
    plain = str(described.get("version", "gemm")).lower() == "gemm" and not described.get("extra_config")
    return str(method) if known and plain else None


def load_packed(folder: Path, described: dict[str, Any], task: Task, trust: bool) -> nn.Module:
    """The model in float32, with the weights that the codes stand for.

    Args:
        described: the `quantization_config`, of a kind that `container_of` knows.
    Raises:
        ModelError: tensors are missing or have no place.
    """
    files = tensor_files(folder)
    config = config_of(folder, trust)
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    model = unfilled_model(config, task, trust)
    dense = {name: tensor.float() for name, tensor in _tensors(files, described)}
    try:
        lacking(model, dense)
    except ValueError as error:
        raise ModelError(f"checkpoint {str(folder)!r} does not fit its model: {error}; download it again") from error
    model.load_state_dict(dense, strict=False)
    loaded: nn.Module = model.eval().requires_grad_(False)
    return loaded


def _tensors(files: dict[str, Path], described: dict[str, Any]) -> list[tuple[str, Tensor]]:
    """Name in the model → dense tensor."""
    found = []
    for name, file in files.items():
        module, _, leaf = name.rpartition(".")
        if leaf == CODES:
            names = {part: f"{module}.{part}" for part in (CODES, "qzeros", "scales", "g_idx")}
            own = {part: read_stored(files[key], key) for part, key in names.items() if key in files}
            found.append((f"{module}.weight", weight_of(own, described)))
        elif f"{module}.{CODES}" not in files or leaf == "bias":
            found.append((name, read_stored(file, name)))
    return found


def weight_of(own: dict[str, Tensor], described: dict[str, Any]) -> Tensor:
    """(rows, columns), float32, of one layer's tensors."""
    bits = described.get("bits", described.get("w_bit"))
    assert isinstance(bits, int)
    zeros, scales = _stream(own["qzeros"].T, bits).T, own["scales"].float()
    if container_of(described) == AWQ:
        codes = _reordered(_stream(own[CODES].T, bits)).T
        zeros = _reordered(zeros.T).T
    else:
        codes = _stream(own[CODES], bits)
        zeros = zeros + (0 if described.get("checkpoint_format") == "gptq_v2" else 1)
    columns, groups = len(codes), len(scales)
    group = own.get("g_idx")
    group = torch.arange(columns) // -(-columns // groups) if group is None else group.long()
    return ((codes - zeros[group]) * scales[group]).T.contiguous()


def _stream(packed: Tensor, bits: int) -> Tensor:
    """(n · bits / 32, …) int32, each column a stream of bits, the lowest first → (n, …) codes, float32."""
    words = packed.to(torch.int64) & 0xFFFFFFFF
    each = (words.unsqueeze(1) >> torch.arange(32).view(-1, *[1] * (packed.ndim - 1))) & 1
    streams = each.reshape(-1, bits, *packed.shape[1:])
    return (streams << torch.arange(bits).view(-1, *[1] * (packed.ndim - 1))).sum(1).float()


def _reordered(codes: Tensor) -> Tensor:
    """(rows, …) as AWQ packs them → in their own order."""
    eights = codes.view(-1, len(ORDER), *codes.shape[1:])
    return eights[:, list(ORDER)].reshape(codes.shape)
