"""What a user can get wrong: exit code 2, one line with value, cause and remedy, nothing half-written."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from natprec.checkpoints.checkpoint import PackedCheckpoint
from natprec.checkpoints.writer import CheckpointWriter
from natprec.measurement import Measurement
from natprec.measurement.measurement import VERSION
from natprec.pipeline import resume as resumable
from natprec.utils import atomic_files as files
from tests.conftest import tiny_encoder, tiny_model
from tests.run_command import SMALL, Result, left_behind, natprec


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current folder, where outputs go."""
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def attempt(here: Path, tiny_folder: Path, text_file: Path) -> Callable[..., Result]:
    """`natprec quantize` with good options, some of which are replaced; None leaves one out."""

    def run(**changes: Any) -> Result:
        options: dict[str, Any] = {
            "model": tiny_folder, "eps": 2e-4, "data": text_file, "tokens": 128, "eval-tokens": 128,
            "sequence-length": 64, "group-size": 32, "rounding": "rtn", "out": "out",
        }  # fmt: skip
        options |= {name.replace("_", "-"): value for name, value in changes.items()}
        flags = [f"--{name}" for name, value in options.items() if value is True]
        valued = [(f"--{name}", value) for name, value in options.items() if value is not None and value is not True]
        return natprec("quantize", *flags, *(part for pair in valued for part in pair))

    return run


def refused(result: Result, *words: str) -> str:
    assert result.code == 2, (result.code, result.out, result.err)
    assert result.out == ""
    reason = result.reason
    for word in words:
        assert word in reason, f"{word!r} not in {reason!r}"
    assert "Traceback" not in result.err
    return reason


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"eps": 0}, ("eps 0.0", "positive", "0.05")),
        ({"eps": -1}, ("eps -1.0", "positive")),
        ({"eps": "nan"}, ("eps nan", "positive")),
        ({"eps": "inf"}, ("eps inf", "positive")),
        ({"eps": "small"}, ("--eps", "'small'", "number", "--help")),
        ({"eps": None}, ("nothing to solve for", "--eps", "--bits", "--max-size")),
        ({"eps": None, "bits": -4}, ("bits -4.0", "positive")),
        ({"eps": None, "max_size": 0}, ("max-size 0.0", "positive")),
        ({"eps_scope": "layer"}, ("--eps-scope", "'layer'")),
        ({"distortion": "embeding"}, ("unknown distortion 'embeding'", "did you mean 'embedding'?")),
        ({"distortion": "embedding"}, ("distortion 'embedding'", "a causal language model", "leave it out for 'kl'")),
        ({"engine": "vlm"}, ("unknown engine 'vlm'", "did you mean 'vllm'?")),
        ({"rounding": "gtpq"}, ("unknown rounding 'gtpq'", "did you mean 'gptq'?")),
        ({"estimator": "fischer"}, ("unknown estimator 'fischer'", "did you mean 'fisher'?")),
        ({"group_size": "many"}, ("group size 'many'", "32, 64, 128, channel or auto")),
        ({"group_size": "0"}, ("group size '0'", "channel")),
        ({"tokens": 0}, ("tokens 0", "positive")),
        ({"tokens": -5}, ("tokens -5", "positive")),
        ({"tokens": 63}, ("tokens 63", "one sequence of 64", "raise --tokens")),
        ({"eval_tokens": 63}, ("eval-tokens 63", "one sequence of 64", "raise --eval-tokens")),
        ({"sequence_length": 1}, ("sequence-length 1", "at least 2")),
        ({"sequence_length": 513, "tokens": 513, "eval_tokens": 513}, ("513", "512 positions", "length 512")),
        ({"device": "gpu7"}, ("device 'gpu7'", "--device cpu")),
        ({"model": "./no/such/folder"}, ("'./no/such/folder'", "no such folder or file", "check the path")),
        ({"model": "model.gguf"}, ("'model.gguf'", "no such folder or file")),
        ({"data": "nothing.txt"}, ("'nothing.txt'", "does not exist", "check the path")),
        ({"group_size": 48}, ("group size 48", "64 inputs", "--group-size 32 or 64")),
        ({"bits": 1.0}, ("budget 1.00 bits/weight", "cheapest plan, 2.5", "raise --bits")),
        ({"bits": 1.0, "activations": 8}, ("budget 1.00 bits/weight", "cheapest plan, 2.5", "raise --bits")),
        ({"max_size": 1000}, ("max-size 1000 bytes", "cheapest plan", "raise --max-size")),
    ],
    ids=lambda value: " ".join(f"{name}={given}" for name, given in value.items()) if isinstance(value, dict) else "",
)  # fmt: skip
def test_an_option_that_cannot_work(
    attempt: Callable[..., Result], here: Path, changes: dict[str, Any], words: tuple[str, ...],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(resumable, "measure", lambda *a, **o: pytest.fail("measured before it was refused"))
    refused(attempt(**changes), *words)
    assert left_behind(here) == []


def test_an_unknown_hub_model(attempt: Callable[..., Result], here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    refused(attempt(model="nobody/no-such-model"), "'nobody/no-such-model'", "unset HF_HUB_OFFLINE")
    assert left_behind(here) == []


def test_an_eps_out_of_reach_says_what_is_in_reach(attempt: Callable[..., Result], here: Path) -> None:
    reason = refused(attempt(eps=1e-12), "eps 1e-12", "raise --eps", "--resume", "natprec solve")
    smallest = float(re.search(r"smallest reachable is (\S+)", reason)[1])  # type: ignore[index]
    assert left_behind(here) == ["out.partial"]
    kept = here / "out.partial" / "measurement.safetensors"
    assert str(kept.relative_to(here)) in reason
    assert natprec("solve", kept, "--eps", smallest * 1.01).code == 0
    assert natprec("solve", kept, "--eps", smallest * 0.98).code == 2
    assert attempt(eps=2e-4, resume=True).code == 0
    assert left_behind(here) == ["out"]


def copied(model: Path, target: Path) -> Path:
    shutil.copytree(model, target)
    return target


def truncated(folder: Path) -> str:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])
    return "truncated or damaged"


def without_a_shard(folder: Path) -> str:
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = {name: f"model-0000{1 + (i % 2)}-of-00002.safetensors" for i, name in enumerate(sorted(tensors))}
    for shard in sorted(set(names.values()))[:1]:
        part = {name: tensors[name] for name, file in names.items() if file == shard}
        save_file(part, folder / shard, metadata={"format": "pt"})
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))
    return "model-00002-of-00002.safetensors"


def with_value(value: float) -> Callable[[Path], str]:
    def spoil(folder: Path) -> str:
        tensors = load_file(folder / "model.safetensors")
        tensors["model.layers.1.mlp.up_proj.weight"][3, 4] = value
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        return "'model.layers.1.mlp.up_proj.weight'"

    return spoil


def pickled(folder: Path) -> str:
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save(tensors, folder / "pytorch_model.bin")
    return "pickle"


def without_config(folder: Path) -> str:
    (folder / "config.json").unlink()
    return "no config.json"


def a_classifier(folder: Path) -> str:
    for file in (folder / "model.safetensors", folder / "config.json"):
        file.unlink()
    tiny_encoder("BertForSequenceClassification").save_pretrained(folder)
    return "neither a causal language model nor an encoder"


def without_linear(folder: Path) -> str:
    from transformers import GPT2Config, GPT2LMHeadModel

    for file in (folder / "model.safetensors", folder / "config.json"):
        file.unlink()
    GPT2LMHeadModel(GPT2Config(vocab_size=512, n_embd=64, n_layer=0, n_head=4)).save_pretrained(folder)
    return "no Linear layer"


@pytest.mark.parametrize(
    "spoil",
    [
        truncated, without_a_shard, with_value(float("nan")), with_value(float("inf")), pickled, without_config,
        a_classifier, without_linear,
    ],
    ids=["truncated", "missing shard", "nan", "inf", "pickle", "no config", "classifier", "no linear"],
)  # fmt: skip
def test_a_model_that_cannot_be_used(
    attempt: Callable[..., Result], here: Path, tmp_path: Path, tiny_folder: Path, spoil: Callable[[Path], str]
) -> None:
    model = copied(tiny_folder, tmp_path / "model")
    cause = spoil(model)
    refused(attempt(model=model), cause)
    assert left_behind(here) == []


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"distortion": "kl"}, ("distortion 'kl'", "an encoder", "leave it out for 'embedding'")),
        ({"sequence_length": 129, "tokens": 129, "eval_tokens": 129}, ("129", "128 positions")),
        ({"sequence_length": 2}, ("2 tokens", "no room for text", "cls and sep")),
    ],
    ids=["kl", "too long", "too short"],
)
def test_what_an_encoder_cannot_do(
    attempt: Callable[..., Result], here: Path, encoder_folder: Path, changes: dict[str, Any], words: tuple[str, ...]
) -> None:
    refused(attempt(model=encoder_folder, **changes), *words)
    assert left_behind(here) == []


def test_a_corrupt_gguf(attempt: Callable[..., Result], here: Path, tmp_path: Path) -> None:
    file = tmp_path / "broken.gguf"
    file.write_bytes(b"GGUF\x03\x00\x00\x00" + bytes(range(256)))
    refused(attempt(model=file), "broken.gguf", "download it again")
    assert left_behind(here) == []


def test_a_width_that_no_group_divides(
    attempt: Callable[..., Result], here: Path, tmp_path: Path, tiny_tokenizer: Any
) -> None:
    tiny_model(intermediate_size=136).save_pretrained(tmp_path / "odd")
    tiny_tokenizer.save_pretrained(tmp_path / "odd")
    done = attempt(model=tmp_path / "odd", eps=None, bits=8.5)
    assert done.code == 0
    assert "'model.layers.0.mlp.down_proj' (136 inputs) and 1 more get 16 bits" in " ".join(done.err.split())
    assert attempt(model=tmp_path / "odd", group_size="auto", eps=None, bits=8.5, overwrite=True).code == 0


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("empty.txt", "", ("empty.txt", "is empty")),
        ("blank.txt", " \n\n ", ("blank.txt", "is empty")),
        ("short.txt", "a few words", ("short.txt", "too short", "give more text")),
        ("repeated.txt", "!" * 60_000, ("repeated.txt", "repeated", "give text with content")),
        ("latin.txt", "caf\xe9 ".encode("latin-1") * 9999, ("latin.txt", "not UTF-8", "iconv")),
        ("empty.jsonl", "", ("empty.jsonl", "empty")),
        ("broken.jsonl", '{"text": "abc"}\n{"text": "', ("broken.jsonl", "line 2", "not JSON")),
        ("column.jsonl", '{"body": "abc"}\n', ("column.jsonl", "body", "--text-column")),
    ],
)
def test_a_text_that_cannot_be_used(
    attempt: Callable[..., Result], here: Path, tmp_path: Path, name: str, content: str | bytes, words: tuple[str, ...]
) -> None:
    file = tmp_path / name
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    refused(attempt(data=file), *words)
    assert left_behind(here) == []


def test_an_unknown_data_column(attempt: Callable[..., Result], here: Path, tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text('{"content": "abc"}\n')
    refused(attempt(data=file, text_column="contents"), "'contents'", "did you mean 'content'?")
    assert left_behind(here) == []


def test_an_existing_output_is_refused_and_replaced_on_request(attempt: Callable[..., Result], here: Path) -> None:
    assert attempt().code == 0
    before = (here / "out" / "plan.json").read_text()
    refused(attempt(eps=1e-3), "'out'", "exists", "--overwrite")
    assert (here / "out" / "plan.json").read_text() == before
    assert attempt(eps=1e-3, overwrite=True).code == 0
    assert (here / "out" / "plan.json").read_text() != before
    assert left_behind(here) == ["out"]


def test_overwrite_deletes_no_folder_of_other_things(attempt: Callable[..., Result], here: Path) -> None:
    (here / "out").mkdir()
    (here / "out" / "thesis.txt").write_text("years of work")
    refused(attempt(overwrite=True), "'out'", "not written by natprec", "choose another")
    assert left_behind(here / "out") == ["thesis.txt"]


@pytest.mark.parametrize(
    "failure",
    [
        OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)),
        SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
        SafetensorError('IoError(Custom { kind: StorageFull, error: "failed to write" })'),
        Exception("No space left on device (os error 28)"),  # of tokenizers
    ],
    ids=["OSError", "SafetensorError", "StorageFull", "tokenizers"],
)
def test_a_full_disk(
    attempt: Callable[..., Result], here: Path, monkeypatch: pytest.MonkeyPatch, failure: Exception
) -> None:
    def close(writer: CheckpointWriter) -> None:
        (writer.folder / "model.safetensors").write_text("half")
        raise failure

    with monkeypatch.context() as patch:
        patch.setattr(PackedCheckpoint, "close", close)
        refused(attempt(), "'out'", "No space left on device", "free space")
    assert left_behind(here) == ["out.partial"], "the measurement is not thrown away"
    assert attempt(resume=True).code == 0
    assert left_behind(here) == ["out"]


def test_any_other_error_is_not_hidden(attempt: Callable[..., Result], monkeypatch: pytest.MonkeyPatch) -> None:
    def defect(*_: Any) -> None:
        raise ZeroDivisionError("a defect of natprec")

    monkeypatch.setattr(PackedCheckpoint, "close", defect)
    with pytest.raises(ZeroDivisionError):
        attempt()


@contextlib.contextmanager
def mounted(folder: Path, options: str) -> Iterator[Path]:
    """A small disk; skips the test where one cannot be mounted (not root, or a container)."""
    folder.mkdir()
    try:
        done = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder], capture_output=True, check=False
        )
    except FileNotFoundError:
        pytest.skip("there is no mount command")
    if done.returncode:
        pytest.skip("only root can mount a disk: " + done.stderr.decode().strip())
    try:
        yield folder
    finally:
        subprocess.run(["umount", folder], check=True)


@pytest.mark.parametrize("size", ["8k", "32k", "96k", "140k"])
def test_a_disk_that_is_really_full(attempt: Callable[..., Result], tmp_path: Path, size: str) -> None:
    """The sizes let it fail at the sweep's state, the measurement, the weights and the tokenizer."""
    with mounted(tmp_path / "disk", f"size={size}") as disk:
        refused(attempt(out=disk / "out"), "No space left on device", "free space")
        assert not (disk / "out").exists()
        assert not list(disk.glob(".natprec-*"))


def test_a_disk_that_is_read_only(attempt: Callable[..., Result], tmp_path: Path) -> None:
    with mounted(tmp_path / "disk", "ro") as disk:
        refused(attempt(out=disk / "out"), str(disk), "no write permission", "choose a folder")


def test_a_folder_without_write_permission(
    attempt: Callable[..., Result], here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = os.access
    monkeypatch.setattr(files.os, "access", lambda path, mode: not mode & os.W_OK and honest(path, mode))
    refused(attempt(out="deep/down/out"), "no write permission", str(here), "choose a folder")
    assert left_behind(here) == []


def test_an_output_below_a_file(attempt: Callable[..., Result], here: Path) -> None:
    (here / "file").write_text("")
    refused(attempt(out="file/out"), "is a file", "choose another")
    assert left_behind(here) == ["file"]


@pytest.fixture(scope="module")
def measurement(tmp_path_factory: pytest.TempPathFactory, tiny_folder: Path, text_file: Path) -> Path:
    file = tmp_path_factory.mktemp("measured") / "m"
    assert natprec("measure", "--model", tiny_folder, "--data", text_file, *SMALL, "--out", file).code == 0
    return file


@pytest.mark.parametrize("share", [0.0, 0.001, 0.3, 0.999])
def test_a_measurement_that_is_cut_off(here: Path, measurement: Path, share: float) -> None:
    content = measurement.read_bytes()
    (here / "m").write_bytes(content[: int(share * len(content))])
    refused(natprec("solve", "m", "--eps", 1e-3, "--out", "plan.json"), "'m'", "damaged or cut off", "measure again")
    assert left_behind(here) == ["m"]


def test_a_measurement_of_another_version_or_kind(here: Path, measurement: Path, tiny_folder: Path) -> None:
    content = measurement.read_bytes()
    ours = b'\\"version\\": %d' % VERSION
    assert content.count(ours) == 1
    (here / "m").write_bytes(content.replace(ours, b'\\"version\\": 9'))
    refused(natprec("solve", "m", "--eps", 1e-3), "'m'", "version 9", "measure again")
    refused(
        natprec("solve", tiny_folder / "model.safetensors", "--eps", 1e-3),
        "is a file of weights",
        "a measurement is wanted",
    )
    refused(natprec("solve", "nowhere", "--eps", 1e-3), "'nowhere'", "does not exist", "natprec measure")


def test_a_plan_of_another_model(here: Path, measurement: Path, tmp_path: Path, tiny_tokenizer: Any) -> None:
    assert natprec("solve", measurement, "--eps", 1e-3, "--out", "plan.json").code == 0
    other = tiny_model()
    with torch.no_grad():
        other.lm_head.weight *= 2
    other.save_pretrained(tmp_path / "other")
    tiny_tokenizer.save_pretrained(tmp_path / "other")
    result = natprec("apply", "plan.json", "--model", tmp_path / "other", "--rounding", "rtn", "--out", "out")
    refused(result, "the plan is of", "measure this model")
    assert left_behind(here) == ["plan.json"]
    (here / "plan.json").write_text((here / "plan.json").read_text()[:300])
    result = natprec("apply", "plan.json", "--model", tmp_path / "other", "--rounding", "rtn", "--out", "out")
    refused(result, "'plan.json'", "solve again")


def test_resuming_another_measurement(attempt: Callable[..., Result], here: Path) -> None:
    refused(attempt(eps=1e-12))
    refused(attempt(resume=True, seed=1), "its seed is 0, now 1", "same options")
    kept = here / "out.partial" / "measurement.safetensors"
    kept.write_bytes(kept.read_bytes()[:5000])
    refused(attempt(resume=True), "damaged or cut off", "measure again")
    assert attempt().code == 0, "a fresh run does not trip over it"


def test_a_checkpoint_that_is_none(here: Path, tiny_folder: Path, text_file: Path) -> None:
    options = ("--model", tiny_folder, "--eval-data", text_file)
    refused(natprec("verify", "nowhere", *options), "'nowhere'", "does not exist", "Hub id")
    (here / "empty").mkdir()
    refused(natprec("verify", "empty", *options), "'empty'", "no config.json")


def test_the_header_of_a_measurement_is_what_these_tests_assume(measurement: Path) -> None:
    assert Measurement.load(measurement).header.version == VERSION
