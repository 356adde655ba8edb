"""Checkpoints that natprec did not write are judged like its own: the same figures for the same weights."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from natprec.evaluation.verification import Verification
from tests.conftest import made_up_text, tiny_model
from tests.run_command import SMALL, left_behind, natprec

JUDGE = ("--eval-tokens", 512, "--sequence-length", 64, "--json")


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory, tiny_folder: Path, text_file: Path) -> tuple[Path, Path]:
    """A compressed-tensors folder and a GGUF file by natprec, as if others had written them."""
    place = tmp_path_factory.mktemp("foreign")
    for engine in ("vllm", "llama.cpp"):
        done = natprec(
            "quantize", "--model", tiny_folder, "--bits", 5.5, "--data", text_file, *SMALL, "--rounding", "rtn",
            "--engine", engine, "--eval-tokens", 128, "--out", place / engine,
        )  # fmt: skip
        assert done.code == 0, done.err
    theirs = place / "theirs"
    shutil.copytree(place / "vllm", theirs, ignore=shutil.ignore_patterns("natprec", "plan.json", "verification.json"))
    (file,) = (place / "llama.cpp").glob("*.gguf")
    shutil.copy(file, place / "theirs.gguf")
    return place / "vllm", place / "llama.cpp"


def judged(*arguments: Any, code: int = 0) -> dict[str, Any]:
    done = natprec("verify", *arguments, *JUDGE)
    assert done.code == code, done.err
    return dict(json.loads(done.out))


def test_others_are_judged_like_natprecs_own(
    written: tuple[Path, Path], tiny_folder: Path, text_file: Path, tmp_path: Path
) -> None:
    other = tmp_path / "text.txt"
    other.write_text(made_up_text(9000, seed=9))
    for own, path in ((written[0], "theirs"), (written[1], "theirs.gguf")):
        place = own.parent / path
        before = left_behind(place) if place.is_dir() else []
        ours = judged(own, "--model", tiny_folder, "--eval-data", other)
        theirs = judged(place, "--model", tiny_folder, "--eval-data", other, "--out", tmp_path / f"{path}.json")
        assert theirs["data_digest"] == ours["data_digest"]
        assert theirs["kl_mean"] == pytest.approx(ours["kl_mean"], rel=0.02), "a KL of 1e-5 is near float32's noise"
        assert theirs["bits_per_weight"] == pytest.approx(ours["bits_per_weight"], rel=0.02)
        assert theirs["bits_per_weight_total"] == pytest.approx(ours["bits_per_weight_total"], rel=0.02)
        assert (theirs["kl_predicted"], theirs["verdict"], theirs["passed"]) == (None, None, None)
        assert theirs["provenance"]["command"].startswith(f"natprec verify {path} --model tiny")
        assert Verification.load(tmp_path / f"{path}.json").kl_mean == theirs["kl_mean"]
        if before:
            assert left_behind(place) == before, "nothing is written into a folder of others"
    found = judged(written[0].parent / "theirs", "--model", tiny_folder, "--eval-data", other, "--eps", 1e-9, code=3)
    assert found["verdict"] == "fail"
    assert judged(written[0].parent / "theirs", "--model", tiny_folder, "--eval-data", other, "--eps", 9)["passed"]


def test_a_plain_copy_is_the_original(tiny_folder: Path, text_file: Path) -> None:
    found = judged(tiny_folder, "--model", tiny_folder, "--eval-data", text_file, "--eps", 1e-6)
    assert (found["kl_mean"], found["verdict"]) == (0.0, "pass")
    assert found["bits_per_weight"] == 32.0, "its files are float32"


def test_what_cannot_be_judged(tmp_path: Path, tiny_folder: Path, tiny_tokenizer: Any, text_file: Path) -> None:
    options = ("--model", tiny_folder, "--eval-data", text_file, "--eps", 1)
    (tmp_path / "empty").mkdir()
    result = natprec("verify", tmp_path / "empty", *options)
    assert (result.code, "is no" in result.err or "no config.json" in result.err) == (2, True), result.err
    with torch.random.fork_rng():
        tiny_model(vocab_size=600).save_pretrained(tmp_path / "other")
    tiny_tokenizer.save_pretrained(tmp_path / "other")
    result = natprec("verify", tmp_path / "other", *options)
    assert result.code == 2
    assert "vocabulary of 600" in result.err
    result = natprec("verify", tmp_path / "nowhere", *options)
    assert (result.code, "does not exist" in result.err) == (2, True)
    (tmp_path / "half.gguf").write_bytes(b"GGUF" + b"\0" * 40)
    result = natprec("verify", tmp_path / "half.gguf", *options)
    assert result.code == 2, result.err
    shutil.copytree(tiny_folder, tmp_path / "cut")
    file = tmp_path / "cut" / "model.safetensors"
    tensors = {name: value for name, value in load_file(file).items() if "down_proj" not in name}
    save_file(tensors, file, {"format": "pt"})
    result = natprec("verify", tmp_path / "cut", *options)
    assert (result.code, "would draw random numbers" in result.err) == (2, True), result.err


def test_the_arithmetic_of_a_gpu(written: tuple[Path, Path], tiny_folder: Path, text_file: Path) -> None:
    """Of compressed-tensors alone; a checkpoint of integers and 16-bit inputs runs there as it says."""
    place, options = written[0].parent, ("--model", tiny_folder, "--eval-data", text_file)
    plain = judged(place / "theirs", *options)
    found = judged(place / "theirs", *options, "--gpu", "a100")
    assert (plain["kl_mean"], found["gpu"]) == (found["kl_mean"], "sm80")
    assert "gpu" not in plain
    result = natprec("verify", place / "theirs.gguf", *options, "--gpu", "a100", *JUDGE)
    assert (result.code, "leave out --gpu" in result.err) == (2, True), result.err
