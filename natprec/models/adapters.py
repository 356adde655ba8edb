"""A LoRA adapter of PEFT, merged into its model: each weight W that it names becomes W + scaling · B · A.

A folder of PEFT holds factors and the name of the model that they belong to. What is more than two factors of a
matrix (DoRA, embeddings, biases, experts) is left to PEFT, and refused by name.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

from torch import Tensor

from natprec.errors import ModelError
from natprec.models.config_file import found_object
from natprec.models.dequantized import Dequantized
from natprec.models.headers import FLOATS, Header, read_headers

DESCRIPTION, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."
FACTOR = re.compile(r"(?P<module>.+)\.lora_(?P<factor>[AB])(?:\.default)?\.weight")
UNUSED = ("use_dora", "lora_bias", "target_parameters", "layer_replication", "trainable_token_indices", "use_qalora")
"""Of PEFT's options those that make something else of the factors."""


def base_of(folder: Path) -> str | None:
    """The model that an adapter's folder names; None: it holds none, or a model beside it."""
    if not (folder / DESCRIPTION).is_file() or (folder / "config.json").is_file():
        return None
    base = found_object(folder / DESCRIPTION).get("base_model_name_or_path")
    if not isinstance(base, str) or not base:
        _refuse(folder, "names no model that it belongs to (base_model_name_or_path)")
    return base


def merged(folder: Path, base: Mapping[str, Header]) -> dict[str, Header]:
    """The tensors of a model with an adapter merged into them.

    Args:
        folder: of the adapter.
        base: the model's tensors by name.
    Raises:
        ModelError: it is no LoRA of plain matrices, or of another model.
    """
    said = found_object(folder / DESCRIPTION)
    kind = str(said.get("peft_type") or "LORA").upper()
    odd = next((key for key in UNUSED if said.get(key)), None)
    if kind != "LORA" or odd is not None:
        _refuse(folder, f"is of kind {kind}" if kind != "LORA" else f"sets {odd}")
    if not (folder / WEIGHTS).is_file():
        _refuse(folder, f"has no {WEIGHTS}")
    factors: dict[str, dict[str, tuple[str, Header]]] = {}
    found = dict(base)
    for key, header in read_headers([folder / WEIGHTS]).items():
        name = key.removeprefix(PREFIX)
        whole = name.replace(".modules_to_save.default.", ".").replace(".modules_to_save.", ".")
        if header.dtype not in FLOATS:
            _refuse(folder, f"holds {key!r} of type {header.dtype}")
        if factor := FACTOR.fullmatch(name):
            factors.setdefault(f"{factor['module']}.weight", {})[factor["factor"]] = (key, header)
        elif whole in base and base[whole].shape == header.shape:
            found[whole] = Dequantized(header.file, base[whole].dtype, header.shape, ((key, header),))
        else:
            _refuse(folder, f"holds {key!r}, for which its model has no place")
    if not factors:
        _refuse(folder, f"holds no factors lora_A and lora_B in {WEIGHTS}")
    turned = bool(said.get("fan_in_fan_out"))
    for name, pair in factors.items():
        if pair.keys() != {"A", "B"} or name not in base:
            _refuse(folder, f"has factors of {name!r}" + (" only in part" if name in base else ", not in its model"))
        found[name] = _merged(folder, name, base[name], pair, _scaling(folder, said, name, pair["A"][1]), turned)
    return found


def _merged(
    folder: Path, name: str, base: Header, pair: Mapping[str, tuple[str, Header]], scaling: float, turned: bool
) -> Dequantized:
    rank, inputs = pair["A"][1].shape if len(pair["A"][1].shape) == 2 else (0, 0)
    wanted = (base.shape[0], rank) if not turned else (base.shape[-1], rank)
    if len(base.shape) != 2 or inputs != base.shape[0 if turned else 1] or pair["B"][1].shape != wanted:
        _refuse(folder, f"has factors {pair['A'][1].shape} and {pair['B'][1].shape} of {name!r}, which is {base.shape}")

    def unpack(weight: Tensor, first: Tensor, second: Tensor) -> Tensor:
        change = scaling * (second.float() @ first.float())
        return weight.float() + (change.T if turned else change)

    return Dequantized(base.file, base.dtype, base.shape, ((name, base), pair["A"], pair["B"]), unpack)


def _scaling(folder: Path, said: Mapping[str, Any], name: str, first: Header) -> float:
    """As PEFT has it: alpha / rank, or alpha / √rank for rank-stabilized factors."""
    alpha: Any = said.get("lora_alpha", 8)
    patterns, module = said.get("alpha_pattern") or {}, name.removesuffix(".weight")
    if not isinstance(patterns, dict) or not all(re.fullmatch(r"[\w.]+", key) for key in patterns):
        _refuse(folder, "has an alpha_pattern that is no list of names")
    fitting = (value for key, value in patterns.items() if module == key or module.endswith(f".{key}"))
    alpha = next(fitting, alpha)
    if isinstance(alpha, bool) or not isinstance(alpha, int | float) or not math.isfinite(alpha):
        _refuse(folder, f"has lora_alpha {alpha!r}, which is no number")
    rank = max(1, first.shape[0])
    return float(alpha) / (math.sqrt(rank) if said.get("use_rslora") else rank)


def _refuse(folder: Path, why: str) -> NoReturn:
    raise ModelError(
        f"the adapter in folder {str(folder)!r} {why}, and natprec cannot merge it; merge it with peft: "
        "PeftModel.from_pretrained(model, folder).merge_and_unload().save_pretrained(...)"
    )
