"""Networks are read without unpickling, and what is missing, broken or another network is named in a sentence."""

from __future__ import annotations

import hashlib
import io
import os
import sys
from pathlib import Path
from typing import Any
from unittest import mock
from urllib.error import URLError

import pytest
import torch
from safetensors.torch import load_file, save_file

from natprec.errors import InputError, ModelError
from natprec.inspection.landscape import known, taef2, transformer
from natprec.inspection.landscape.known import Asked, networks
from natprec.inspection.landscape.photographs import COUNT, crops
from tests.inspection.landscape import networks as tiny

REAL = Path(os.environ.get("TAEF2", Path(__file__).parents[4] / "shared" / "data" / "taef2"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """TAEF2's graph with random weights."""
    place = tmp_path_factory.mktemp("taef2")
    torch.manual_seed(0)
    for part, graph in taef2.PARTS.items():
        save_file({name: value.half() for name, value in graph().state_dict().items()}, place / f"{part}.safetensors")
    return place


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    image = pytest.importorskip("PIL.Image")
    place = tmp_path / "pictures"
    place.mkdir()
    for number, size in enumerate([(40, 30), (64, 64), (33, 90)]):
        pixels = torch.randint(256, (size[1], size[0], 3), dtype=torch.uint8)
        image.fromarray(pixels.numpy()).save(place / f"{number}.png")
    return place


def asked(tmp_path: Path, **named: Any) -> Asked:
    none = {"taef2": None, "dit": None, "unet": None, "data": None}
    return Asked(**{**none, **named}, cache=tmp_path / "cache")


def test_images_become_latents_an_eighth_as_large(folder: Path, tmp_path: Path) -> None:
    encoder, decoder = taef2.read(folder, tmp_path)
    with torch.no_grad():
        latents = encoder(torch.rand(2, 3, 32, 16))
        assert latents.shape == (2, 32, 4, 2)
        assert decoder(latents).shape == (2, 3, 32, 16)
    assert sum(each.numel() for each in encoder.parameters()) == 1_338_528


@pytest.mark.skipif(not REAL.is_dir(), reason="needs TAEF2's weights: TAEF2=FOLDER")
def test_the_trained_autoencoder_gives_photographs_back(tmp_path: Path) -> None:
    pytest.importorskip("PIL")
    pytest.importorskip("sklearn")
    encoder, decoder = taef2.read(REAL, tmp_path)
    images = crops(None, 56)(0)
    with torch.no_grad():
        found = decoder(encoder(images))
    assert -10 * torch.log10((found - images).square().mean()) > 22


def test_an_archive_is_read_without_unpickling(tmp_path: Path) -> None:
    module = taef2.decoder().half()
    kept = io.BytesIO()
    torch.save(module.state_dict(), kept)
    with (
        mock.patch("torch.load", side_effect=AssertionError),
        mock.patch("pickle.Unpickler", side_effect=AssertionError),
    ):
        found = taef2.numbers(kept.getvalue(), taef2.decoder())
    assert found.keys() == module.state_dict().keys()
    assert all(torch.equal(found[name], value) for name, value in module.state_dict().items())


def test_a_download_is_kept_and_its_digest_checked(tmp_path: Path) -> None:
    files = {}
    for part, graph in taef2.PARTS.items():
        written = io.BytesIO()
        torch.save(graph().half().state_dict(), written)
        files[part] = written.getvalue()
    digests = {part: hashlib.sha256(content).hexdigest() for part, content in files.items()}

    def answer(address: str, timeout: float) -> io.BytesIO:
        assert taef2.COMMIT in address
        return io.BytesIO(files["encoder" if "encoder" in address else "decoder"])

    with mock.patch.dict(taef2.DIGESTS, digests), mock.patch("urllib.request.urlopen", answer):
        taef2.read(None, tmp_path / "cache")
    with mock.patch.dict(taef2.DIGESTS, digests), mock.patch("urllib.request.urlopen", side_effect=AssertionError):
        taef2.read(None, tmp_path / "cache")
    with pytest.raises(ModelError, match=r"sha256 .*taef2_encoder.pth'; delete it"):
        taef2.read(None, tmp_path / "cache")
    with mock.patch("urllib.request.urlopen", answer), pytest.raises(ModelError, match=r"sha256 .*--taef2 FOLDER"):
        taef2.read(None, tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_offline_there_is_a_sentence_and_the_unet_alone(tmp_path: Path) -> None:
    with (
        mock.patch("urllib.request.urlopen", side_effect=URLError("no route")),
        mock.patch.object(known, "_terrain", return_value=tiny.tiny_unet()),
    ):
        found, missing = networks(asked(tmp_path))
    assert [each.name for each in found] == ["tiny UNet"]
    assert len(missing) == 1
    assert "no route" in missing[0]
    assert "--taef2 FOLDER" in missing[0]


def test_nothing_to_measure_names_all_that_is_missing(tmp_path: Path) -> None:
    with (
        mock.patch("urllib.request.urlopen", side_effect=URLError("no route")),
        mock.patch.object(known, "_terrain", side_effect=InputError("no UNet")),
        pytest.raises(InputError, match=r"no network to measure.*no route.*no UNet"),
    ):
        networks(asked(tmp_path))


def test_without_a_transformer_the_autoencoder_is_measured(folder: Path, pictures: Path, tmp_path: Path) -> None:
    with mock.patch.object(known, "_terrain", side_effect=InputError("no UNet")):
        found, missing = networks(asked(tmp_path, taef2=folder, data=str(pictures)))
    assert [each.name for each in found] == ["TAEF2"]
    assert [len(place.layers) for place in found[0].places if place.weighs] == [
        1,
        4,
        10,
        10,
        15,
        1,
        1,
        15,
        10,
        10,
        4,
        1,
    ]
    assert "landscape_dit.py" in missing[0]
    assert "no UNet" in missing[1]


def test_with_a_transformer_it_is_measured_too(folder: Path, pictures: Path, tmp_path: Path) -> None:
    shape = transformer.Shape(width=16, blocks=2, heads=2)
    file = tmp_path / "dit.safetensors"
    about = {"trained": "here, on nothing", "cpu_seconds": 60.0}
    transformer.write(file, transformer.Transformer(shape), torch.zeros(32), torch.ones(32), about)
    with mock.patch.object(known, "_terrain", side_effect=InputError("no UNet")):
        found, _ = networks(asked(tmp_path, taef2=folder, data=str(pictures), dit=file))
    assert [each.name for each in found] == ["TAEF2", "DiT on TAEF2"]
    assert "trained here, on nothing, 1 CPU minutes" in found[1].about
    samples = found[1].samples(0)
    with torch.no_grad():
        assert found[1].module(**samples.tensors).shape == (known.IMAGES, 3, 64, 64)


def test_a_transformer_comes_back_as_it_was_written(tmp_path: Path) -> None:
    made = tiny.transformer().half().float()
    transformer.write(tmp_path / "t", made, torch.arange(4.0), torch.ones(4), {"trained": "here", "cpu_seconds": 1.0})
    found, mean, _, about = transformer.read(tmp_path / "t")
    states, times = torch.randn(2, 4, 4, 4), torch.tensor([0.2, 0.9])
    assert torch.equal(found(states, times), made(states, times))
    assert torch.equal(mean, torch.arange(4.0))
    assert about == {"trained": "here", "cpu_seconds": 1.0}


def test_other_files_are_named(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"has no encoder.safetensors"):
        taef2.read(tmp_path, tmp_path)
    (tmp_path / "encoder.safetensors").write_bytes(b"none")
    with pytest.raises(InputError, match=r"encoder.safetensors' cannot be read"):
        taef2.read(tmp_path, tmp_path)
    tensors = load_file(folder / "encoder.safetensors")
    tensors["0.weight"] = tensors["0.weight"][:32]
    save_file(tensors, tmp_path / "encoder.safetensors")
    with pytest.raises(ModelError, match=r"another network: .*0\.weight"):
        taef2.read(tmp_path, tmp_path)
    with pytest.raises(InputError, match=r"no transformer of scripts/landscape_dit.py"):
        transformer.read(tmp_path / "encoder.safetensors")
    with pytest.raises(InputError, match=r"does not exist; scripts/landscape_dit.py"):
        transformer.read(tmp_path / "none")


def test_crops_depend_on_the_seed_alone(pictures: Path) -> None:
    made = crops(str(pictures), 16)
    one = made(0)
    assert one.shape == (COUNT, 3, 16, 16)
    assert torch.equal(one, made(0))
    assert not torch.equal(one, made(1))
    assert 0 <= one.min() <= one.max() <= 1


def test_the_unet_needs_a_file_of_onnx(tmp_path: Path) -> None:
    if "onnx" not in sys.modules and not _installed("onnx"):
        with pytest.raises(InputError, match="pip install onnx"):
            known._terrain(tmp_path / "unet.onnx")
        return
    with pytest.raises(InputError, match="does not exist"):
        known._terrain(tmp_path / "unet.onnx")
    (tmp_path / "unet.onnx").write_bytes(b"none")
    with pytest.raises(InputError, match="no ONNX file"):
        known._terrain(tmp_path / "unet.onnx")


def _installed(name: str) -> bool:
    import importlib.util

    return importlib.util.find_spec(name) is not None
