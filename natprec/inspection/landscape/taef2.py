"""TAEF2, a trained tiny autoencoder for the latents of FLUX.2: its graph, and where its weights come from.

github.com/madebyollin/taesd, MIT licence. Images in [0, 1], (batch, 3, H, W) → latents (batch, 32, H/8, W/8). The
repository has pickles; natprec checks their digest and reads their numbers without unpickling anything: the archive
holds one record for each tensor, in the order of the graph.
"""

from __future__ import annotations

import hashlib
import io
import zipfile
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional

from natprec.errors import InputError, ModelError, first_line
from natprec.utils.atomic_files import write_bytes

CHANNELS, LATENTS = 64, 32

COMMIT = "5cccb12dc72074a4be35680c3b108548a7c69978"
SOURCE = f"https://raw.githubusercontent.com/madebyollin/taesd/{COMMIT}/taef2_{{part}}.pth"
DIGESTS = {
    "encoder": "10a4e1021e89d7551eaf161352da8dbd0b1aa83872ae28b150c1df1ce2f147b6",
    "decoder": "0a44a31e1ae59eb9dbf9359d24942fd3ef5928162c1800d97a28c61d51be0ab5",
}
"""Part → sha256 of its file."""

SECONDS = 30
"""That a download waits for an answer."""


def _conv(inputs: int, outputs: int, stride: int = 1, bias: bool = True) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=bias)


class _Block(nn.Module):
    """ReLU(convolutions(x) + x); with `pool` x has gone through a normalized 1 x 1 branch before."""

    def __init__(self, pooled: bool = False) -> None:
        super().__init__()
        chain = [layer for _ in range(3) for layer in (_conv(CHANNELS, CHANNELS), nn.ReLU())]
        self.conv = nn.Sequential(*chain[:-1])
        wide = 4 * CHANNELS
        self.pool = (
            nn.Sequential(
                nn.Conv2d(CHANNELS, wide, 1, bias=False), nn.GroupNorm(4, wide), nn.ReLU(),
                nn.Conv2d(wide, CHANNELS, 1, bias=False),
            )
            if pooled
            else None
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        if self.pool is not None:
            x = x + self.pool(x)
        return functional.relu(self.conv(x) + x)


class _Bounded(nn.Module):
    """3 tanh(x / 3), which the decoder begins with."""

    def forward(self, x: Tensor) -> Tensor:
        return 3 * torch.tanh(x / 3)


def encoder() -> nn.Sequential:
    """Images → latents; without weights yet."""
    return nn.Sequential(
        _conv(3, CHANNELS), _Block(),
        _conv(CHANNELS, CHANNELS, 2, False), *(_Block() for _ in range(3)),
        _conv(CHANNELS, CHANNELS, 2, False), *(_Block() for _ in range(3)),
        _conv(CHANNELS, CHANNELS, 2, False), *(_Block(True) for _ in range(3)),
        _conv(CHANNELS, LATENTS),
    )  # fmt: skip


def decoder() -> nn.Sequential:
    """Latents → images; without weights yet."""
    up = nn.Upsample(scale_factor=2)
    return nn.Sequential(
        _Bounded(), _conv(LATENTS, CHANNELS), nn.ReLU(),
        *(_Block(True) for _ in range(3)), up, _conv(CHANNELS, CHANNELS, bias=False),
        *(_Block() for _ in range(3)), up, _conv(CHANNELS, CHANNELS, bias=False),
        *(_Block() for _ in range(3)), up, _conv(CHANNELS, CHANNELS, bias=False),
        _Block(), _conv(CHANNELS, 3),
    )  # fmt: skip


PARTS = {"encoder": encoder, "decoder": decoder}


def read(folder: Path | None, cache: Path) -> tuple[nn.Module, nn.Module]:
    """Encoder and decoder, float32.

    Args:
        folder: with encoder.safetensors and decoder.safetensors; None: from `cache`, else from GitHub into it.
    Raises:
        InputError: no such files, or GitHub cannot be reached.
        ModelError: they hold another network, or not what the digests are of.
    """
    made = []
    for part, graph in PARTS.items():
        module = graph()
        tensors = _from_folder(folder, part) if folder is not None else _from_github(cache, part, module)
        made.append(with_weights(module, tensors, f"TAEF2's {part}"))
    return made[0], made[1]


def with_weights(module: nn.Module, tensors: dict[str, Tensor], name: str) -> nn.Module:
    """The module with these weights, in float32.

    Raises:
        ModelError: names or shapes are others.
    """
    try:
        module.load_state_dict({key: value.float() for key, value in tensors.items()})
    except RuntimeError as error:
        lines = [line.strip() for line in str(error).splitlines()]
        raise ModelError(f"{name} is another network: {lines[min(1, len(lines) - 1)][:160]}") from error
    return module.eval()


def _from_folder(folder: Path, part: str) -> dict[str, Tensor]:
    file = folder / f"{part}.safetensors"
    if not file.is_file():
        raise InputError(f"{str(folder)!r} has no {file.name}; --taef2 takes the folder of TAEF2's two safetensors")
    try:
        return load_file(file)
    except (SafetensorError, OSError) as error:
        raise InputError(f"{str(file)!r} cannot be read ({first_line(error)}); fetch it again") from error


def _from_github(cache: Path, part: str, module: nn.Module) -> dict[str, Tensor]:
    """The file of the repository, kept in `cache`, digest checked each time."""
    file = cache / f"taef2_{part}.pth"
    content = file.read_bytes() if file.is_file() else _downloaded(SOURCE.format(part=part))
    found = hashlib.sha256(content).hexdigest()
    if found != DIGESTS[part]:
        where = f"{str(file)!r}; delete it" if file.is_file() else "GitHub; use --taef2 FOLDER"
        raise ModelError(f"TAEF2's {part} has sha256 {found[:16]}…, not {DIGESTS[part][:16]}…, in {where}")
    if not file.is_file():
        cache.mkdir(parents=True, exist_ok=True)
        write_bytes(file, content)
    return numbers(content, module)


def numbers(content: bytes, module: nn.Module) -> dict[str, Tensor]:
    """The float16 tensors of an archive that torch.save wrote of a module's state, without unpickling it."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        top = archive.namelist()[0].split("/")[0]
        return {
            name: torch.frombuffer(bytearray(archive.read(f"{top}/data/{number}")), dtype=torch.float16).view(own.shape)
            for number, (name, own) in enumerate(module.state_dict().items())
        }


def _downloaded(address: str) -> bytes:
    from urllib.request import urlopen

    try:
        with urlopen(address, timeout=SECONDS) as answer:
            content: bytes = answer.read()
    except OSError as error:  # URLError is one
        raise InputError(
            f"TAEF2 cannot be had from github.com/madebyollin/taesd ({first_line(error)}); give --taef2 FOLDER"
        ) from error
    return content
