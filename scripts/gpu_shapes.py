"""The shapes of `gpu_main_job`, what they take of memory and disk, and how many of their layers fit."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from transformers import AutoModelForCausalLM, LlamaConfig, Qwen3MoeConfig

from natprec.models.devices import free_bytes
from natprec.utils.memory import available_bytes

HOST = Path("/dev/shm")
"""Files that are main memory: weights that are read from there come from the host, not from a disk."""

PLACES = ("gpu", "host", "disk")
"""Where weights are: all of them as float32 on the device; as stored in main memory; as stored on disk."""

LLAMA_8B = {
    "hidden_size": 4096, "intermediate_size": 14336, "num_attention_heads": 32, "num_key_value_heads": 8,
    "vocab_size": 128256, "num_hidden_layers": 32, "max_position_embeddings": 8192, "rope_theta": 500000.0,
}  # fmt: skip
QWEN_30B_A3B = {
    "hidden_size": 2048, "intermediate_size": 6144, "moe_intermediate_size": 768, "num_attention_heads": 32,
    "num_key_value_heads": 4, "head_dim": 128, "num_experts": 128, "num_experts_per_tok": 8, "vocab_size": 151936,
    "num_hidden_layers": 48, "max_position_embeddings": 8192,
}  # fmt: skip
TINY = {
    "hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4, "num_key_value_heads": 2,
    "vocab_size": 512, "num_hidden_layers": 2, "max_position_embeddings": 2048,
}  # fmt: skip
TINY_EXPERTS = {**TINY, "moe_intermediate_size": 64, "head_dim": 16, "num_experts": 4, "num_experts_per_tok": 2}

SHAPES: dict[str, tuple[type[Any], dict[str, Any]]] = {
    "llama-3.1-8b": (LlamaConfig, LLAMA_8B),
    "qwen3-30b-a3b": (Qwen3MoeConfig, QWEN_30B_A3B),
    "tiny": (LlamaConfig, TINY),
    "tiny-experts": (Qwen3MoeConfig, TINY_EXPERTS),
}
"""Name → class of the config, and its values; the last two are for trying this script on a CPU."""

COPIES_ON_DISK = 2.0
"""Of the bfloat16 weights: themselves, and the rounded ones, which lie there twice for a while."""

BESIDE = 12e9
"""Bytes beside the weights: gradients, second moments, logits of a batch; measured on nothing yet."""


@dataclass(frozen=True)
class Shape:
    """One model.

    Attributes:
        layers: that are made.
    """

    name: str
    layers: int

    @property
    def config(self) -> Any:
        """Of transformers."""
        kind, values = SHAPES[self.name]
        return kind(**values | {"num_hidden_layers": self.layers}, tie_word_embeddings=False, bos_token_id=None)

    @property
    def weights(self) -> int:
        """How many."""
        with init_empty_weights():
            return sum(
                each.numel()
                for each in AutoModelForCausalLM.from_config(self.config, trust_remote_code=False).parameters()
            )


def whole(name: str) -> Shape:
    """With all of its layers."""
    return Shape(name, SHAPES[name][1]["num_hidden_layers"])


def fitting(name: str, place: str, device: str, scratch: Path, most: int | None = None) -> tuple[Shape | None, str]:
    """As many layers as fit, at most `most`, and what limited them; None: not even one."""
    full = whole(name)
    around = Shape(name, 1).weights
    each = Shape(name, 2).weights - around if full.layers > 1 else around
    around -= each
    room = {"disk": shutil.disk_usage(scratch).free * 0.9 / (2 * COPIES_ON_DISK)}
    if place == "gpu":
        room["memory of the device"] = (free_bytes(device, None) - BESIDE * (device != "cpu")) * 0.9 / 4
    else:
        room["memory"] = available_bytes() * 0.5 / 4  # of the process: a segment, and all block inputs
    if place == "host":
        room["/dev/shm"] = shutil.disk_usage(HOST).free * 0.9 / 2 if HOST.is_dir() else 0
    limits = {what: int((free - around) // each) for what, free in room.items()}
    what = min(limits, key=lambda name: limits[name])
    layers = min(full.layers, limits[what], most or full.layers)
    if layers < 1:
        return None, f"{what} holds {max(0, limits[what])} of its layers"
    return Shape(name, layers), what if layers == limits[what] < full.layers else ""


def describe(device: str) -> dict[str, Any]:
    """The machine, as far as figures depend on it."""
    found: dict[str, Any] = {"device": device, "memory_bytes": available_bytes(), "torch": torch.__version__}
    if torch.device(device).type == "cuda":
        found |= {"name": torch.cuda.get_device_name(device), "gpu_bytes": free_bytes(device, None)}
    return found
