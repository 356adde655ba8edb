"""Train the small diffusion transformer of `natprec landscape`, on TAEF2's latents of emoji.

    python scripts/landscape_dit.py --taef2 FOLDER --font NotoColorEmoji.ttf --cache ~/.cache/natprec

The font is that of Debian's fonts-noto-color-emoji. Needs matplotlib's fontTools and Pillow. A file that is there
already, of the same settings, is kept. What comes out is a small network of a few minutes, and its file says so.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from natprec.errors import NatprecError
from natprec.inspection.landscape import taef2, transformer
from natprec.inspection.landscape.known import DIT

SIDE = 64
"""Pixels of an image: 8 x 8 latents."""
GLYPH = 109
"""Pixels at which the font has its bitmaps."""


def glyphs(font: Path, copies: int, seed: int) -> tuple[Tensor, list[int]]:
    """Each emoji of one code point on backgrounds of its own, some mirrored.

    Returns:
        (images, 3, SIDE, SIDE) in [0, 1], and the code point of each.
    """
    from fontTools.ttLib import TTFont
    from PIL import Image, ImageDraw, ImageFont

    drawn = ImageFont.truetype(str(font), GLYPH, layout_engine=ImageFont.Layout.BASIC)
    draw, found, codes = np.random.default_rng(seed), [], []
    for code in sorted(TTFont(str(font)).getBestCmap()):
        size = tuple(drawn.getbbox(chr(code))[2:])
        if code < 0x2190 or min(size) < GLYPH // 2:  # digits and joiners, or nothing
            continue
        glyph = Image.new("RGBA", size)
        ImageDraw.Draw(glyph).text((0, 0), chr(code), font=drawn, embedded_color=True)
        for _ in range(copies):
            background = Image.new("RGBA", (SIDE, SIDE), tuple(int(each) for each in draw.integers(96, 256, 3)))
            side = int(draw.integers(48, 65))
            placed = glyph.resize((side, side), Image.Resampling.LANCZOS)
            left, top = (int(draw.integers(0, SIDE - side + 1)) for _ in range(2))
            background.alpha_composite(placed, (left, top))
            pixels = np.asarray(background.convert("RGB"), dtype=np.float32) / 255
            found.append(pixels[:, ::-1].copy() if draw.random() < 0.5 else pixels)
            codes.append(code)
    return torch.from_numpy(np.stack(found)).permute(0, 3, 1, 2).contiguous(), codes


def descend(model: nn.Module, loss: Callable[[], Tensor], steps: int, rate: float, warm: int, kept: float) -> float:
    """Train a model; its weights are the running mean of all steps' afterwards.

    Args:
        loss: of one batch.
        warm: steps in which the rate rises to `rate`; in the last quarter it falls to 0.
        kept: of the mean, at each step, once there have been many.
    Returns:
        The mean of the last 200 losses.
    """
    mean = {name: value.clone() for name, value in model.state_dict().items()}
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.0, betas=(0.9, 0.99))
    losses = []
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = rate * min(1.0, (step + 1) / warm) * min(1.0, 4 * (steps - step) / steps)
        found = loss()
        optimizer.zero_grad()
        found.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(found.item())
        share = min(kept, step / (step + 10))
        for name, value in model.state_dict().items():
            mean[name].lerp_(value, 1 - share)
        if step % 200 == 199:
            print(f"{type(model).__name__}, step {step + 1}: loss {np.mean(losses[-200:]):.4f}", flush=True)
    model.load_state_dict(mean)
    model.eval()
    return float(np.mean(losses[-200:]))


def train(latents: Tensor, shape: transformer.Shape, steps: int, batch: int, rate: float, seed: int) -> tuple:
    """A transformer with the running mean of its weights, and the last losses' mean."""
    torch.manual_seed(seed)
    model = transformer.Transformer(shape)

    def loss() -> Tensor:
        x = latents[torch.randint(len(latents), (batch,))]
        noise, times = torch.randn_like(x), torch.rand(batch)
        return functional.mse_loss(model(x.lerp(noise, times.view(-1, 1, 1, 1)), times), noise - x)

    return model, descend(model, loss, steps, rate, warm=100, kept=0.995)


def main() -> None:
    """Train and write, or say that it is done."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--taef2", type=Path, help="folder of its two safetensors; else from GitHub")
    parser.add_argument("--cache", type=Path, required=True, help="where downloads and the transformer are put")
    parser.add_argument("--font", type=Path, required=True)
    parser.add_argument("--out", type=Path, help=f"default: {DIT} in the cache")
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rate", type=float, default=1e-3)
    parser.add_argument("--copies", type=int, default=3, help="images of each glyph")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    settings = {name: getattr(options, name) for name in ("steps", "batch", "rate", "copies", "seed")}
    out = options.out or options.cache / DIT
    if out.is_file():
        known = transformer.read(out)[3]
        if known["settings"] == settings:
            print(f"{out} is there, trained in {known['seconds']:.0f} s ({known['cpu_seconds']:.0f} s of CPU time)")
            return
    if not options.font.is_file():
        print(f"no transformer is trained: there is no font {options.font}; install fonts-noto-color-emoji")
        return
    start, used = time.perf_counter(), time.process_time()
    try:
        encoder, _ = taef2.read(options.taef2, options.cache)
    except NatprecError as error:
        print(f"no transformer is trained: {error}")
        return
    images, _ = glyphs(options.font, options.copies, options.seed)
    with torch.no_grad():
        latents = torch.cat([encoder(each) for each in images.split(64)])
    mean, deviation = latents.mean((0, 2, 3)), latents.std((0, 2, 3))
    latents = (latents - mean.view(-1, 1, 1)) / deviation.view(-1, 1, 1)
    print(f"{len(images)} images encoded in {time.perf_counter() - start:.0f} s", flush=True)
    model, loss = train(latents, transformer.Shape(), options.steps, options.batch, options.rate, options.seed)
    seconds, cpu = time.perf_counter() - start, time.process_time() - used
    about = {"trained": f"here, on {len(images)} images of emoji", "settings": settings, "loss": loss,
             "seconds": seconds, "cpu_seconds": cpu}  # fmt: skip
    transformer.write(out, model, mean, deviation, about)
    count = sum(each.numel() for each in model.parameters())
    print(f"{out}: {count} weights, loss {loss:.4f}, {seconds:.0f} s ({cpu:.0f} s of CPU time)")


if __name__ == "__main__":
    main()
