"""Tiny pipelines of diffusers with random weights, as folders."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

CLASSES = 6


def autoencoder(sample: int = 16, channels: int = 4) -> Any:
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        block_out_channels=(16, 32), down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2, latent_channels=channels, norm_num_groups=8, sample_size=sample,
    )  # fmt: skip


def dit(folder: Path) -> Path:
    """A transformer that is asked for classes, and an autoencoder."""
    from diffusers import DDIMScheduler, DiTPipeline, DiTTransformer2DModel

    torch.manual_seed(0)
    transformer = DiTTransformer2DModel(
        num_attention_heads=2, attention_head_dim=16, in_channels=4, out_channels=8, num_layers=2, sample_size=8,
        patch_size=2, num_embeds_ada_norm=CLASSES,
    )  # fmt: skip
    DiTPipeline(transformer, autoencoder(), DDIMScheduler()).save_pretrained(folder)
    return folder


def unet(folder: Path) -> Path:
    """A UNet that makes images of noise alone."""
    from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel

    torch.manual_seed(1)
    network = UNet2DModel(
        sample_size=8, in_channels=3, out_channels=3, layers_per_block=1, block_out_channels=(16, 32),
        down_block_types=("DownBlock2D", "AttnDownBlock2D"), up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        norm_num_groups=8, attention_head_dim=8,
    )  # fmt: skip
    DDPMPipeline(network, DDPMScheduler(num_train_timesteps=100)).save_pretrained(folder)
    return folder


def spoiled(folder: Path, name: str, part: nn.Module) -> None:
    """One part is replaced."""
    part.save_pretrained(folder / name)  # type: ignore[operator]


MAKERS = {"dit": dit, "unet": unet}
