"""Two processes that send tensors from device to device, as NCCL sends a GPU's: they measure what one measures."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from natprec.measurement import Measurement
from tests.conftest import tiny_model
from tests.utils.test_workers import assert_same, finish, free_port

ROOT = Path(__file__).parents[2]


def start(size: int, *arguments: object) -> list[subprocess.Popen[str]]:
    port = free_port()
    return [
        subprocess.Popen(
            [sys.executable, "-W", "ignore", "-m", "tests.far.shared", *map(str, arguments)],
            cwd=ROOT,
            env=os.environ
            | {"OMP_NUM_THREADS": "1", "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(size)}
            | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)},
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for rank in range(size)
    ]  # fmt: skip


def test_only_tensors_of_the_device_reach_a_collective(tmp_path: Path, tiny_tokenizer: Any, text_file: Path) -> None:
    model = tmp_path / "model"
    tiny_model(num_hidden_layers=1, hidden_size=64, intermediate_size=128).save_pretrained(model)
    tiny_tokenizer.save_pretrained(model)
    options = ["--tokens", "4096", "--sequence-length", "64", "--json"]
    found = {}
    for size in (1, 2):
        out = tmp_path / f"of-{size}"
        for rank, (code, said, error) in enumerate(finish(start(size, model, text_file, out, *options))):
            assert code == 0, error
            assert (json.loads(said)["processes"] if rank == 0 else said) == (size if rank == 0 else "")
            assert (json.loads(error.splitlines()[-1]).get("all_to_all_single", 0) > 20) == (size == 2)
        found[size] = Measurement.load(out)
    assert_same(found[2], found[1])


@pytest.mark.parametrize("name", ["all_reduce", "barrier", "broadcast_object_list"])
def test_other_collectives_would_be_seen(name: str) -> None:
    """They are absent in those processes: a call ends the run."""
    code = f"from tests.far import shared; import torch.distributed as dist; shared.forbid(); dist.{name}(None)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert f"AssertionError: torch.distributed.{name} was called" in done.stderr


def test_a_tensor_of_the_cpu_is_refused() -> None:
    code = (
        "import torch; from tests.far import shared; from natprec.utils.workers import Workers; shared.forbid(); "
        "Workers(0, 2, torch.device('cpu')).exchange([torch.zeros(1)] * 2, [(1,)] * 2)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "No backend type associated with device type cpu" in done.stderr
