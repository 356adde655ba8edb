"""Train a small pipeline of diffusers: an autoencoder (AutoencoderKL) and a diffusion transformer (DiT), on emoji.

    python scripts/trained_pipeline.py --font NotoColorEmoji.ttf --out dit-emoji

The font is that of Debian's fonts-noto-color-emoji. Its glyphs have 32 pixels a side, and 64 neighbouring code points
make a class. Both networks are of a few minutes, trained here, and so says `trained.json` in the folder; the classes
are in `classes.txt`, which `natprec quantize --prompts` reads. A folder of the same settings is kept.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch
from landscape_dit import descend, glyphs
from torch import Tensor
from torch.nn import functional

SIDE = 32
LATENTS = 4
RUNNING: dict[str, Any] = {"warm": 50, "kept": 0.99}
"""How both networks descend: steps until the full rate, and what the mean of weights keeps at each step."""
CLASSES = 1000
"""That `DiTPipeline` supposes: its number for none is 1000."""


def autoencoder() -> Any:
    """Images of 32 pixels a side become 4 x 8 x 8 latents."""
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        block_out_channels=(32, 64, 64), down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3, layers_per_block=1, latent_channels=LATENTS, norm_num_groups=16,
        sample_size=SIDE,
    )  # fmt: skip


def transformer() -> Any:
    """Eight blocks of 192 channels; each latent place is a token."""
    from diffusers import DiTTransformer2DModel

    return DiTTransformer2DModel(
        num_attention_heads=6, attention_head_dim=32, in_channels=LATENTS, out_channels=LATENTS, num_layers=8,
        sample_size=SIDE // 4, patch_size=1, num_embeds_ada_norm=CLASSES,
    )  # fmt: skip


def train_autoencoder(images: Tensor, steps: int, batch: int) -> tuple[Any, float]:
    """Images are in [-1, 1]."""
    model = autoencoder().train()

    def loss() -> Tensor:
        x = images[torch.randint(len(images), (batch,))]
        posterior = model.encode(x).latent_dist
        return functional.l1_loss(model.decode(posterior.sample()).sample, x) + 1e-4 * posterior.kl().mean() / SIDE**2

    return model, descend(model, loss, steps, 2e-3, **RUNNING)


def train_transformer(latents: Tensor, labels: Tensor, steps: int, batch: int) -> tuple[Any, float]:
    """Latents have variance 1; what is learned is their noise."""
    from diffusers import DDIMScheduler

    scheduler: Any = DDIMScheduler(clip_sample=False)
    model = transformer().train()

    def loss() -> Tensor:
        chosen = torch.randint(len(latents), (batch,))
        noise, times = torch.randn(batch, *latents.shape[1:]), torch.randint(1000, (batch,))
        mixed = scheduler.add_noise(latents[chosen], noise, times)
        return functional.mse_loss(model(mixed, timestep=times, class_labels=labels[chosen]).sample, noise)

    return model, descend(model, loss, steps, 1e-3, **RUNNING)


def main() -> None:
    """Train and write, or say that it is done."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--font", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--autoencoder-steps", type=int, default=500)
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--copies", type=int, default=3, help="images of each glyph")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    settings = {name: getattr(options, name) for name in ("autoencoder_steps", "steps", "batch", "copies", "seed")}
    record = options.out / "trained.json"
    if record.is_file() and json.loads(record.read_text())["settings"] == settings:
        print(f"{options.out} is there: {record.read_text()}")
        return
    from diffusers import DDIMScheduler, DiTPipeline

    start, used = time.perf_counter(), time.process_time()
    torch.manual_seed(options.seed)
    drawn, codes = glyphs(options.font, options.copies, options.seed)
    images = functional.avg_pool2d(drawn, drawn.shape[-1] // SIDE) * 2 - 1
    pages = sorted({code // 64 for code in codes})
    labels = torch.tensor([pages.index(code // 64) for code in codes])
    vae, vae_loss = train_autoencoder(images, options.autoencoder_steps, options.batch)
    with torch.no_grad():
        latents = torch.cat([vae.encode(each).latent_dist.mean for each in images.split(64)])
    vae.register_to_config(scaling_factor=float(1 / latents.std()))
    latents = latents * vae.config.scaling_factor
    model, loss = train_transformer(latents, labels, options.steps, options.batch)
    pipeline: Any = DiTPipeline(model, vae, DDIMScheduler(clip_sample=False))
    pipeline.to(dtype=torch.float16).save_pretrained(options.out)
    about = {
        "trained": f"here, on {len(images)} images of emoji of {SIDE} pixels a side, {len(pages)} classes",
        "settings": settings,
        "weights": sum(each.numel() for each in model.parameters()),
        "loss": loss,
        "loss_autoencoder": vae_loss,
        "seconds": time.perf_counter() - start,
        "cpu_seconds": time.process_time() - used,
    }
    (options.out / "classes.txt").write_text("".join(f"{number}\n" for number in range(len(pages))))
    record.write_text(json.dumps(about, indent=2) + "\n")
    print(json.dumps(about, indent=2))


if __name__ == "__main__":
    main()
