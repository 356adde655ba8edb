"""A limit of the GPU's memory: torch's own, and refused where there is none to limit."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from natprec.config import QuantizeConfig, parse_memory
from natprec.errors import InputError
from natprec.models import devices
from natprec.models.devices import free_bytes, limit_gpu_memory
from natprec.pipeline.request import too_large
from tests.run_command import natprec

GPU = 48_000_000_000


@pytest.fixture
def fractions(monkeypatch: pytest.MonkeyPatch) -> list[tuple[float, str]]:
    """A made-up GPU of 48 GB, 40 of them free; what torch is told to keep to."""
    told: list[tuple[float, str]] = []
    monkeypatch.setattr(devices, "usable_device", torch.device)
    properties = SimpleNamespace(total_memory=GPU)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: properties)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (40_000_000_000, GPU))
    monkeypatch.setattr(
        torch.cuda, "set_per_process_memory_fraction", lambda share, device: told.append((share, str(device)))
    )
    return told


def test_torch_is_told(fractions: list[tuple[float, str]]) -> None:
    limit_gpu_memory("cuda:1", parse_memory("24GB"))
    limit_gpu_memory("cuda", None)
    assert fractions == [(0.5, "cuda:1")]


def test_more_than_there_is_is_refused(fractions: list[tuple[float, str]]) -> None:
    with pytest.raises(InputError, match=r"gpu-memory 80.0 GB: 'cuda' has 48.0 GB; give less"):
        limit_gpu_memory("cuda", parse_memory("80GB"))
    assert not fractions


def test_a_cpu_is_no_gpu() -> None:
    with pytest.raises(InputError, match=r"gpu-memory 24.0 GB: device 'cpu' is no GPU; leave it out, or give --device"):
        limit_gpu_memory("cpu", parse_memory("24GB"))


def test_what_is_no_size() -> None:
    with pytest.raises(InputError, match=r"gpu-memory 'much': give bytes, or a number with its unit, such as 24GB"):
        parse_memory("much")


@pytest.mark.usefixtures("fractions")
def test_the_limit_decides_where_weights_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a GPU's memory, not the main one's."""
    assert free_bytes("cuda", None) == 40_000_000_000
    assert free_bytes("cuda", parse_memory("24GB")) == 24_000_000_000
    monkeypatch.setattr("natprec.pipeline.request.stored_elements", lambda _: 3_000_000_000)  # 36 GB, three times
    assert not too_large(QuantizeConfig("model", device="cuda"))
    assert too_large(QuantizeConfig("model", device="cuda", gpu_memory=parse_memory("24GB")))


def test_the_command_line_refuses_it_on_a_cpu(tiny_folder: Path, tmp_path: Path) -> None:
    done = natprec("measure", "--model", tiny_folder, "--out", tmp_path / "m", "--gpu-memory", "24GB")
    assert done.code == 2
    assert "device 'cpu' is no GPU; leave it out, or give --device cuda" in done.reason
    assert not (tmp_path / "m").exists()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
def test_the_limit_is_kept_on_a_gpu() -> None:
    limit_gpu_memory("cuda", 1e9)
    try:
        with pytest.raises(torch.OutOfMemoryError):
            torch.empty(int(1.1e9), dtype=torch.uint8, device="cuda")
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
