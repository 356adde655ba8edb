"""Any flipped bit of a weight file is found and named: by `verify`, by natprec's own loader, by every reader."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

import natprec as package
from natprec.checkpoints import checkpoint
from natprec.checkpoints.dense_reader import load_quantized, open_quantized
from natprec.errors import ModelError
from natprec.measurement.measure import measure
from natprec.measurement.subject import Subject
from natprec.models.checksums import refuse_damaged
from natprec.models.model_files import weight_files
from natprec.pipeline import rounded
from natprec.utils.progress import Stages
from tests.arrange import restore, snapshot, subject, tokens
from tests.run_command import natprec


@pytest.fixture(scope="module")
def made(tiny_tokenizer: Any) -> Subject:
    return subject(tiny_tokenizer, vocab_size=512)


@pytest.fixture(scope="module")
def good(made: Subject, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of several files."""
    folder, original = tmp_path_factory.mktemp("good") / "out", snapshot(made.model)
    plan = measure(made, tokens(4, 16), group_size=32, rounding="rtn").solve(eps=2.0)
    folder.mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoint, "SHARD_BYTES", 20_000)
        rounded.write(
            made, plan, rounded.round_to_plan(made, plan, None, "rtn", Stages(quiet=True)), folder, Stages(quiet=True)
        )
    restore(made.model, original)
    assert len(weight_files(folder)) > 1
    return folder


def header(file: Path) -> tuple[dict[str, Any], int]:
    """The header of a safetensors file, and where its data begins."""
    content = file.read_bytes()
    length = int.from_bytes(content[:8], "little")
    return json.loads(content[8 : 8 + length]), 8 + length


def flipped(good: Path, folder: Path, name: str, bit: int) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(good, folder)
    content = bytearray((folder / name).read_bytes())
    content[bit // 8] ^= 1 << bit % 8
    (folder / name).write_bytes(content)
    return folder


def test_a_bit_in_each_file_is_named_by_every_reader(good: Path, made: Subject, tmp_path: Path) -> None:
    for number, file in enumerate(weight_files(good)):
        entries, start = header(file)
        entries.pop("__metadata__")
        tensor = sorted(entries)[number % len(entries)]
        bit = 8 * (start + entries[tensor]["data_offsets"][1] - 1) + number % 8
        folder = flipped(good, tmp_path / "copy", file.name, bit)
        readers: list[Any] = [
            load_quantized,
            package.load,
            lambda where: package.verify(where, made.model, tokens(1, 8)),
            lambda where: open_quantized(where, made.segmented, torch.device("cpu")),
        ]
        for reader in readers:
            with pytest.raises(ModelError, match=rf"tensor '{tensor}' of '.*{file.name}' is damaged: its CRC-32"):
                reader(folder)


def test_the_commands_say_so(good: Path, tmp_path: Path, made: Subject) -> None:
    file = weight_files(good)[-1]
    folder = flipped(good, tmp_path / "copy", file.name, 8 * header(file)[1])
    made.model.save_pretrained(tmp_path / "m")  # type: ignore[operator]
    made.tokenizer.save_pretrained(tmp_path / "m")
    for command in (["verify", folder, "--model", tmp_path / "m"], ["generate", folder, "--prompt", "a"]):
        result = natprec(*command)
        assert result.code == 2
        assert f"{file.name}' is damaged: its CRC-32" in result.reason


def test_every_byte_of_a_header_counts(good: Path, tmp_path: Path) -> None:
    """Its length, names, types, shapes, places, the sums themselves: a bit of each byte, drawn."""
    file = weight_files(good)[0]
    draw, copy = random.Random(0), tmp_path / "plain"
    shutil.copytree(good, copy)
    content, (_, start) = file.read_bytes(), header(file)
    for place in range(start):
        changed = bytearray(content)
        changed[place] ^= 1 << draw.randrange(8)
        (copy / file.name).write_bytes(changed)
        with pytest.raises(ModelError, match=f"{file.name}"):
            refuse_damaged(weight_files(copy), ours=True)


def test_what_others_wrote_has_no_sums(good: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = Path(shutil.copytree(good, tmp_path / "copy"))
    for file in weight_files(folder):
        save_file(load_file(file), file, {"format": "pt", "made_by": "others"})
    refuse_damaged(weight_files(folder), ours=False)
    with pytest.raises(ModelError, match="is damaged in its metadata"):
        load_quantized(folder)
    (folder / "plan.json").unlink()
    load_quantized(folder)
