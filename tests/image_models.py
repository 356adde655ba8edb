"""Tiny random models of images, as folders with the processor that transformers saves beside them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

SIDE = 32

TRANSFORMER = {"hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 128}
PLACES = {"image_size": SIDE, "patch_size": 8}


def vit() -> Any:
    from transformers import ViTConfig, ViTForImageClassification

    return ViTForImageClassification(ViTConfig(**TRANSFORMER, **PLACES, num_labels=10))


def clip() -> Any:
    from transformers import CLIPVisionConfig, CLIPVisionModel

    return CLIPVisionModel(CLIPVisionConfig(**TRANSFORMER, **PLACES))


def mobilenet() -> Any:
    from transformers import MobileNetV2Config, MobileNetV2ForImageClassification

    return MobileNetV2ForImageClassification(MobileNetV2Config(image_size=SIDE, depth_multiplier=0.35, num_labels=10))


def regnet() -> Any:
    """Its convolutions have groups."""
    from transformers import RegNetConfig, RegNetForImageClassification

    sizes: dict[str, Any] = {"embedding_size": 16, "hidden_sizes": [16, 32, 32, 64], "depths": [1, 1, 1, 1]}
    return RegNetForImageClassification(RegNetConfig(**sizes, groups_width=8, num_labels=10, layer_type="x"))


MAKERS = {"vit": vit, "clip": clip, "mobilenet": mobilenet, "regnet": regnet}


def saved(family: str, folder: Path) -> Path:
    """A folder with weights and preprocessor_config.json; predictions differ from image to image."""
    from transformers import ViTImageProcessor

    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = MAKERS[family]().eval()
        for name, parameter in model.named_parameters():
            if parameter.ndim == 4:
                torch.nn.init.kaiming_normal_(parameter)
            if parameter.ndim == 2 and "classifier" in name:
                parameter.data.mul_(10)
        for name, buffer in model.named_buffers():  # statistics that 16 bits do not hold
            if name.endswith("running_var"):
                buffer.mul_(1 + 0.3 * torch.rand_like(buffer))
            if name.endswith("running_mean"):
                buffer.normal_(std=0.1)
    model.save_pretrained(folder)
    ViTImageProcessor(size={"height": SIDE, "width": SIDE}).save_pretrained(folder)
    return folder
