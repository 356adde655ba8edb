"""The main job on a GPU, where there is one: its numbers, the limit of its memory, two GPUs by NCCL.

Without one, tests/far runs the same code on a device whose memory the CPU cannot read.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from natprec.formats import integer
from natprec.measurement import Measurement
from natprec.measurement.measure import measure
from natprec.measurement.subject import Subject
from natprec.runtime.generate import generate
from natprec.runtime.load import load
from tests.arrange import subject, tokens
from tests.conftest import tiny_model
from tests.run_command import natprec
from tests.runtime.test_load import written
from tests.utils.test_workers import assert_same, finish, start

GPUS = torch.cuda.device_count()
ONE = pytest.mark.skipif(GPUS < 1, reason="there is no GPU; tests/far runs the same code")
TWO = pytest.mark.skipif(GPUS < 2, reason="there are no two GPUs; tests/far/test_shared.py runs the same code")

NEAR = 1e-3
"""Largest difference of a curve from the CPU's, over its largest value: bfloat16 products, sums in another order."""


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=ONE)])
def test_a_measurement_is_that_of_the_cpu(device: str) -> None:
    expected = measure(subject(), tokens(8, 64), group_size=32)
    model = subject().model.to(device)
    model.tie_weights()
    found = measure(Subject.in_memory(model, None, "small"), tokens(8, 64).to(device), group_size=32)
    for name, curve in expected.curves.items():
        for part in ("forward", "backward"):
            wanted, actual = getattr(curve, part), getattr(found.curves[name], part)
            assert abs(actual - wanted).max() <= NEAR * abs(wanted).max(), name


@ONE
def test_beyond_the_limit_torch_refuses() -> None:
    code = (
        "import torch; from natprec.models.devices import limit_gpu_memory; limit_gpu_memory('cuda', 1e9); "
        "kept = torch.empty(900_000_000, dtype=torch.uint8, device='cuda'); print('fits', flush=True); "
        "torch.empty(200_000_000, dtype=torch.uint8, device='cuda')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout == "fits\n"
    assert "OutOfMemoryError" in done.stderr


@pytest.mark.parametrize("options", [(), pytest.param(("--device", "cuda", "--gpu-memory", "2GB"), marks=ONE)])
def test_quantize_as_a_whole(options: tuple[str, ...], tiny_folder: Path, text_file: Path, tmp_path: Path) -> None:
    done = natprec(
        "quantize", "--model", tiny_folder, "--bits", "6", "--data", text_file, "--eval-data", text_file,
        "--tokens", "1024", "--sequence-length", "64", "--eval-tokens", "512", "--out", tmp_path / "out", *options,
    )  # fmt: skip
    assert done.code in (0, 3), done.reason
    assert (tmp_path / "out" / "verification.json").is_file()


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=ONE)])
def test_text_from_a_checkpoint(device: str, tmp_path: Path, tiny_tokenizer: Any) -> None:
    """On a GPU by a recorded graph, with blocks that are finished inside their kernels."""
    made = subject(tiny_tokenizer, vocab_size=512, max_position_embeddings=64)
    runnable = load(written(tmp_path / "out", made, integer(4, 32), "vllm"), device=device)
    found = generate(runnable, "some words", max_new_tokens=8, greedy=True)
    assert len(found.tokens) == 8 or found.finished
    if device == "cuda":
        assert set(runnable.replaced.gated.values()) == set(runnable.replaced.residuals.values()) == {""}


@TWO
def test_two_gpus_measure_what_one_does(tmp_path: Path, tiny_tokenizer: Any, text_file: Path) -> None:
    model = tmp_path / "model"
    tiny_model(num_hidden_layers=2, hidden_size=128, intermediate_size=512).save_pretrained(model)
    tiny_tokenizer.save_pretrained(model)
    options = ["measure", "--model", model, "--data", text_file, "--tokens", "4096", "--sequence-length", "64"]
    found = {}
    for size in (1, 2):
        out = tmp_path / f"of-{size}"
        for code, _, error in finish(start(size, *options, "--device", "cuda", "--out", out)):
            assert code == 0, error
        found[size] = Measurement.load(out)
    assert_same(found[2], found[1])
