"""Tiny pipelines of diffusers with random weights, as folders."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

CLASSES = 6


def autoencoder(sample: int = 16, channels: int = 4) -> Any:
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        block_out_channels=(16, 32), down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2, latent_channels=channels, norm_num_groups=8, sample_size=sample,
        shift_factor=0.1,
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


def clip(folder: Path) -> tuple[Any, Any]:
    """A text encoder and its tokenizer, which knows letters."""
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    letters = "abcdefghijklmnopqrstuvwxyz,"
    words = [*letters, *(f"{letter}</w>" for letter in letters), "ab</w>", "<|startoftext|>", "<|endoftext|>"]
    folder.mkdir(parents=True)
    (folder / "vocab.json").write_text(json.dumps({word: number for number, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\na b</w>\n")
    tokenizer = CLIPTokenizer.from_pretrained(folder, model_max_length=16)
    ends = {"bos_token_id": len(words) - 2, "eos_token_id": len(words) - 1, "pad_token_id": len(words) - 1}
    torch.manual_seed(2)
    described = CLIPTextConfig(
        vocab_size=len(words), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=16, projection_dim=32, **ends,
    )  # fmt: skip
    return CLIPTextModel(described), tokenizer


def stable_diffusion(folder: Path) -> Path:
    """A UNet that is asked with prompts."""
    from diffusers import DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel

    text_encoder, tokenizer = clip(folder.parent / f"{folder.name}-words")
    torch.manual_seed(3)
    network = UNet2DConditionModel(
        sample_size=8, in_channels=4, out_channels=4, layers_per_block=1, block_out_channels=(16, 32),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        norm_num_groups=8, attention_head_dim=8, cross_attention_dim=32,
    )  # fmt: skip
    StableDiffusionPipeline(
        vae=autoencoder(), text_encoder=text_encoder, tokenizer=tokenizer, unet=network,
        scheduler=DDIMScheduler(steps_offset=1, clip_sample=False),
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    ).save_pretrained(folder)  # fmt: skip
    return folder


def flux(folder: Path) -> Path:
    """A transformer of two kinds of blocks that is asked with two encodings of a prompt."""
    from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel
    from transformers import T5Config, T5EncoderModel

    text_encoder, tokenizer = clip(folder.parent / f"{folder.name}-words")
    torch.manual_seed(4)
    second = T5EncoderModel(
        T5Config(vocab_size=64, d_model=32, d_kv=16, d_ff=64, num_layers=1, num_heads=2, feed_forward_proj="gated-gelu")
    )
    transformer = FluxTransformer2DModel(
        patch_size=1, in_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=32, pooled_projection_dim=32, axes_dims_rope=(4, 4, 8), guidance_embeds=True,
    )  # fmt: skip
    FluxPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(), vae=autoencoder(), text_encoder=text_encoder, tokenizer=tokenizer,
        text_encoder_2=second, tokenizer_2=tokenizer, transformer=transformer,
    ).save_pretrained(folder)  # fmt: skip
    return folder


MAKERS = {"dit": dit, "unet": unet, "stable-diffusion": stable_diffusion, "flux": flux}
