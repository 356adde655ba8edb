"""What decoding a token asks of a device, on the kernels of CUDA: counted, without a GPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from natprec.formats import CHANNEL, Format, integer
from tests.arrange import subject
from tests.runtime.families import INPUTS
from tests.runtime.test_load import written

pytest.importorskip("triton")

BEFORE = {"W4A16": 76, "W8A8": 84}
"""Operations of one block and token at commit 54793eb (2026-11-30), whose epilogues were operations of torch."""

NOW = 35

OF_A_BLOCK = {"planar_linear": 5, "scaled_tokens": 4, "rms_norm": 2}
"""Products of query, key and value; of attention's output; of up; of gate; of down. Up and gate have one input."""

GONE = ("silu", "pow", "mean", "rsqrt", "abs", "amax", "div", "round")
"""Operations of norms, activations and scales that are inside kernels now."""

SAME = {"W4A16": 5e-3, "W8A8": 0.03}
"""Largest difference of a logit from the dense weights', over the largest: activations as float16, and as int8."""


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer: Any) -> dict[str, list[dict[str, Any]]]:
    """Of each kind the counts of a model of two blocks and of one of three."""
    root = tmp_path_factory.mktemp("decoded")
    formats: dict[str, Format] = {"W4A16": integer(4, 32), "W8A8": integer(8, CHANNEL)}
    folders = [
        written(root / f"{name}-{layers}", subject(tiny_tokenizer, num_hidden_layers=layers), fmt, "vllm")
        for name, fmt in formats.items()
        for layers in (2, 3)
    ]
    for folder in folders[2:]:
        config = json.loads((folder / "config.json").read_text())
        for group in config["quantization_config"]["config_groups"].values():
            group["input_activations"] = INPUTS
        (folder / "config.json").write_text(json.dumps(config))
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "tests.far.decoded", *map(str, folders)],
        cwd=Path(__file__).parents[2],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    results = json.loads(done.stdout)
    return {"W4A16": results[:2], "W8A8": results[2:]}


@pytest.mark.parametrize("kind", BEFORE)
def test_so_many_operations_of_a_block(found: dict[str, list[dict[str, Any]]], kind: str) -> None:
    two, three = found[kind]
    names = {name: count - two["by_name"].get(name, 0) for name, count in three["by_name"].items()}
    assert {name: names[name] for name in OF_A_BLOCK} == OF_A_BLOCK
    assert [name for name in GONE if name in three["by_name"]] == []
    assert three["operations"] - two["operations"] == sum(names.values()) == NOW
    assert BEFORE[kind] > 2 * NOW


@pytest.mark.parametrize("kind", BEFORE)
def test_nothing_is_copied_or_waited_for(found: dict[str, list[dict[str, Any]]], kind: str) -> None:
    """What a CUDA graph can record."""
    for result in found[kind]:
        assert (result["waits"], result["down"], result["up"]) == (0, 0, 0)


@pytest.mark.parametrize("kind", BEFORE)
def test_the_logits_are_those_of_the_dense_weights(found: dict[str, list[dict[str, Any]]], kind: str) -> None:
    """Prompt, and tokens one by one from memory of a fixed size."""
    for result in found[kind]:
        assert result["difference"] < SAME[kind]
