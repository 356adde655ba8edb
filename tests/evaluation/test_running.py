"""The inputs that an engine really rounds, of checkpoints that say otherwise."""

from __future__ import annotations

from pathlib import Path

import pytest

from natprec.errors import InputError
from natprec.evaluation.running import inputs_that_run
from natprec.formats.presets import FLOAT_ACTIVATIONS
from tests.commands.test_check import BLOCK, LAYER, checkpoint, group


def test_inputs_that_stay_at_16_bits(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "a", [group("int4-g32", ["Linear"], "a8-token")])
    assert inputs_that_run(folder, "vllm", "sm80") == dict.fromkeys((LAYER + leaf for leaf in BLOCK), None)
    assert inputs_that_run(folder, "vllm", None) == inputs_that_run(folder, "vllm", "any") == {}


def test_inputs_that_are_rounded_though_the_file_does_not_say_so(tmp_path: Path) -> None:
    """MXFP4 on Hopper: vLLM asks for MXFP4 inputs whatever the file says, and Humming makes float8 of them."""
    folder = checkpoint(tmp_path / "a", [group("mxfp4", ["Linear"], container="mxfp4-pack-quantized")])
    found = inputs_that_run(folder, "vllm", "sm90")
    assert set(found) == {LAYER + leaf for leaf in BLOCK}
    assert set(found.values()) == {FLOAT_ACTIVATIONS["fp8-token"]}
    assert set(inputs_that_run(folder, "vllm", "sm100").values()) == {FLOAT_ACTIVATIONS["mxfp4"]}
    assert inputs_that_run(folder, "vllm", "sm80") == {}


def test_what_cannot_run_has_no_verdict(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "a", [group("int4-g32", ["Linear"], "fp8-token")])
    with pytest.raises(
        InputError, match=r"vLLM 0\.33\.0 cannot run on sm80: vLLM multiplies 4-bit integers with float8 on"
    ):
        inputs_that_run(folder, "vllm", "sm80")
    with pytest.raises(InputError, match="what engine 'sglang' runs on it is not known"):
        inputs_that_run(folder, "sglang", "sm80")
