"""Checkpoints on the kernels of CUDA: on a GPU where there is one, else in Triton's interpreter; what is said then."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from natprec.formats import CHANNEL, Format, integer
from tests.arrange import subject
from tests.run_command import natprec as command
from tests.runtime.test_load import written

FLOAT16, INT8 = 5e-3, 0.03
"""Largest difference of a logit over the largest logit: activations as float16, and as int8."""

ENDINGS = ["none", "residual", "none", "silu+gated", "residual"]
"""What follows the products of a block inside their kernels: query, key and value; output; up; gate; down."""


WHERE = pytest.mark.parametrize(
    "device",
    ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU"))],
)


def interpreted(folder: Path, device: str, *many: str) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "tests.runtime.interpreted", str(folder), device, *many],
        cwd=Path(__file__).parents[2],
        env=os.environ | {"TRITON_INTERPRET": "1" if device == "cpu" else "0", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)


@WHERE
@pytest.mark.parametrize(
    ("engine", "fmt"), [("vllm", integer(3, 32)), ("natprec", integer(5, 32, False))], ids=["W3", "W5"]
)
def test_triton_computes_what_the_dense_weights_do(
    engine: str, fmt: Format, device: str, tmp_path: Path, tiny_tokenizer: Any
) -> None:
    """Linears of both profiles; natprec's has a quantized embedding and head too."""
    pytest.importorskip("triton")
    found = interpreted(written(tmp_path / "out", subject(tiny_tokenizer), fmt, engine), device)
    assert found["kernels"] == (["half", "triton"] if engine == "vllm" else ["triton"])
    assert set(found["launched"]) == {48, 1}
    head = ["none"] * (engine == "natprec")
    assert found["endings"] == 2 * (2 * ENDINGS + head)
    assert found["written"] == 0
    assert max(found["many"], found["one"]) < FLOAT16
    assert found["norms"] == 5
    assert set(found["gated"].values()) == set(found["residuals"].values()) == {""}
    assert found["apart"] < FLOAT16, "transformers' modules between the products"


@WHERE
def test_many_tokens_meet_dense_weights(device: str, tmp_path: Path, tiny_tokenizer: Any) -> None:
    pytest.importorskip("triton")
    fmt = integer(6, 32, False)
    found = interpreted(written(tmp_path / "out", subject(tiny_tokenizer), fmt, "natprec"), device, "48")
    assert found["kernels"] == ["triton"]
    assert found["launched"] == [1] * 11
    assert found["written"] == 11
    assert max(found["many"], found["one"], found["apart"]) < FLOAT16


@WHERE
def test_int8_inputs_run_on_codes(device: str, tmp_path: Path, tiny_tokenizer: Any) -> None:
    pytest.importorskip("triton")
    folder = written(tmp_path / "out", subject(tiny_tokenizer), integer(8, CHANNEL), "vllm")
    config = json.loads((folder / "config.json").read_text())
    for group in config["quantization_config"]["config_groups"].values():
        group["input_activations"] = {
            "num_bits": 8, "type": "int", "symmetric": True, "strategy": "token", "dynamic": True
        }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    found = interpreted(folder, device)
    assert found["kernels"] == ["half", "triton-int8"]
    assert found["endings"] == 4 * ENDINGS
    assert max(found["many"], found["one"], found["apart"]) < INT8


@pytest.mark.skipif(torch.cuda.is_available(), reason="says what happens without a GPU")
def test_without_a_gpu_the_command_says_so(tmp_path: Path, tiny_tokenizer: Any) -> None:
    folder = written(tmp_path / "out", subject(tiny_tokenizer, vocab_size=512), integer(4, 32), "vllm")
    for device in ("cuda", "cuda:1", "gpu"):
        refused = command("generate", folder, "--prompt", "some words", "--device", device)
        assert refused.code == 2
        assert f"device {device!r} cannot be used (" in refused.reason
        assert refused.reason.endswith("use --device cpu")
