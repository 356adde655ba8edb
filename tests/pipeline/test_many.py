"""quantize, apply and verify on several processes: the checkpoint of one."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from natprec.pipeline.together import threads_of_the_host
from tests.conftest import tiny_model
from tests.utils.test_workers import ENVIRONMENT, IMPATIENT, finish, start


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer: Any) -> Path:
    folder = tmp_path_factory.mktemp("many") / "model"
    tiny_model(num_hidden_layers=3).save_pretrained(folder)
    tiny_tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def options(model: Path, text_file: Path) -> list[str]:
    """Eight batches to measure on, four that the model writes; four that judge, half of them its own."""
    return [
        "quantize", "--model", str(model), "--eps", "0.02", "--data", str(text_file), "--tokens", "8192",
        "--sequence-length", "64", "--eval-tokens", "2048", "--confidence", "0.5",
    ]  # fmt: skip


def alone(*arguments: object) -> tuple[int, str, str]:
    command = [sys.executable, "-m", "natprec", *map(str, arguments)]
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout, done.stderr


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return {name: value for file in sorted(folder.glob("*.safetensors")) for name, value in load_file(file).items()}


def same_weights(found: Path, expected: Path) -> float:
    """The share of equal values, of checkpoints with the same plan."""
    ours, theirs = weights(found), weights(expected)
    assert ours.keys() == theirs.keys()
    formats = [{name: site["format"] for name, site in json.loads((each / "plan.json").read_text())["sites"].items()}
               for each in (found, expected)]  # fmt: skip
    assert formats[0] == formats[1]
    equal = sum(int((ours[name] == theirs[name]).sum()) for name in theirs)
    return equal / sum(value.numel() for value in theirs.values())


def judged(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "verification.json").read_text())
    return found


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory, options: list[str]) -> tuple[Path, dict[str, Any]]:
    """The checkpoint of one process, and what it prints."""
    out = tmp_path_factory.mktemp("one") / "one"
    code, said, why = alone(*options, "--weights", "disk", "--json", "--out", out)
    assert code == 0, why
    return out, json.loads(said)


def test_quantize_by_two(tmp_path: Path, options: list[str], one: tuple[Path, dict[str, Any]]) -> None:
    known, said = one
    results = finish(start(2, *options, "--weights", "disk", "--json", "--out", tmp_path / "two"))
    assert [result[0] for result in results] == [0, 0], results
    assert not results[1][1], "process 0 alone talks"
    assert same_weights(tmp_path / "two", known) == 1.0
    found = json.loads(results[0][1])
    assert found["processes"] == 2
    assert all(found["sent_bytes"][stage] > 0 for stage in ("joint", "round model.layers.0", "verify"))
    for name in ("kl_mean", "perplexity_quantized", "top1_agreement"):
        assert found[name] == pytest.approx(said[name], rel=1e-4)
    assert not (tmp_path / "two.partial").exists()


def test_one_that_works_while_others_wait_has_their_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    own = torch.get_num_threads()
    monkeypatch.setattr("os.cpu_count", lambda: 3 * own)
    for processes, expected in (("1", own), ("2", 2 * own), ("8", 3 * own)):
        monkeypatch.setenv("LOCAL_WORLD_SIZE", processes)
        with threads_of_the_host():
            assert torch.get_num_threads() == expected
        assert torch.get_num_threads() == own


def test_verify_by_two(tmp_path: Path, model: Path, text_file: Path, one: tuple[Path, dict[str, Any]]) -> None:
    again = shutil.copytree(one[0], tmp_path / "again")
    results = finish(start(2, "verify", again, "--model", model, "--eval-data", text_file))
    assert [result[0] for result in results] == [0, 0], results
    known, found = judged(one[0]), judged(again)
    assert found["data_digest"] == known["data_digest"]
    assert found["kl_mean"] == pytest.approx(known["kl_mean"], rel=1e-6)


def test_another_number_goes_on(tmp_path: Path, options: list[str], one: tuple[Path, dict[str, Any]]) -> None:
    """One of two dies after some blocks were rounded; three finish."""
    asked = [*options, "--weights", "disk", "--out", tmp_path / "out"]
    processes = start(2, *asked, code=IMPATIENT)
    state = tmp_path / "out.partial" / "segments" / "text.safetensors"
    until = time.monotonic() + 120
    while not state.exists() and time.monotonic() < until:
        time.sleep(0.005)
    processes[1].kill()
    (code, _, said), _ = finish(processes)
    assert code == 2
    assert "process 1 (pid" in said
    assert "--resume" in said
    assert not (tmp_path / "out").exists()
    results = finish(start(3, *asked, "--resume"))
    assert [result[0] for result in results] == [0, 0, 0], results
    assert same_weights(tmp_path / "out", one[0]) == 1.0


def test_learning_by_several(tmp_path: Path, options: list[str]) -> None:
    """One of two dies once something was learned; three go on from there."""
    place = options.index("--eps")
    asked = [
        *options[:place],
        "--bits",
        "3.6",
        *options[place + 2 :],
        "--learn-tokens",
        "8192",
        "--out",
        tmp_path / "out",
    ]
    processes = start(2, *asked, code=IMPATIENT)
    until = time.monotonic() + 120
    while not learned_steps(tmp_path) and time.monotonic() < until:
        time.sleep(0.005)
    processes[1].kill()
    (code, _, said), _ = finish(processes)
    assert code == 2, said
    assert learned_steps(tmp_path), "the state of both is kept"
    results = finish(start(3, *asked, "--resume"))
    assert [result[0] for result in results] == [0, 0, 0], results
    assert "learned from 8192 tokens" in results[0][2]
    assert judged(tmp_path / "out")["kl_mean"] > 0
    assert not (tmp_path / "out.partial").exists()


def learned_steps(folder: Path) -> set[str]:
    """Those of which both processes have written their files, but for the rounding itself."""
    names = [file.stem.split("-") for file in folder.glob("out.partial/learning-*of2.safetensors")]
    counts = [step for _, _, step, _ in names if int(step)]
    return {step for step in counts if counts.count(step) == 2}


def test_an_output_that_only_one_host_sees(tmp_path: Path, options: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Each writes into a folder of its own."""
    code = (
        "import os; from natprec.pipeline import together; together.SEEN_WITHIN = 1.0; "
        "os.chdir(os.environ['RANK']); from natprec import cli; cli.main()"
    )
    for rank in ("0", "1"):
        (tmp_path / rank).mkdir()
    monkeypatch.chdir(tmp_path)
    results = finish(start(2, *options, "--out", "here", code=code))
    assert {result[0] for result in results} == {2}
    assert (
        "process 1 does not see the folder of 'here' in which process 0 writes; give --out on a file" in results[0][2]
    )
    assert not [each for rank in ("0", "1") for each in (tmp_path / rank).iterdir()]
