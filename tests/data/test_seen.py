"""No text that was measured on judges, under whatever name, and in whatever part."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from natprec.config import QuantizeConfig
from natprec.data.seen import NO_PIECES, PIECE, pieces_of, same_text, source_digest, unseen
from natprec.data.windows import load_tokens
from natprec.evaluation.verify import MEASUREMENT, may_be_measured_on, measured_on
from natprec.measurement import Measurement
from natprec.pipeline.samples import shares_text
from natprec.tasks import Samples
from tests.arrange import curve, measurement, tokens
from tests.conftest import made_up_text
from tests.run_command import natprec


def windows(tokenizer: Any, source: Path, split: Any = "held-out", shared: bool = False, **more: Any) -> torch.Tensor:
    options = {"sequences": 8, "length": 64, "split": split, "shared": shared}
    return load_tokens(tokenizer, str(source), **{**options, **more})


def runs(ids: torch.Tensor) -> set[tuple[int, ...]]:
    return {tuple(row) for row in ids.unfold(1, PIECE, 1).flatten(0, 1).tolist()}


def test_pieces_are_found_wherever_they_lie() -> None:
    measured = tokens(4, 80, 5000).ids
    other = tokens(6, 50, 5000, seed=1).ids
    other[2, 11 : 11 + PIECE] = measured[3, 40 : 40 + PIECE]
    other[4, 18:50] = measured[0, :32]
    other[5, 18:49] = measured[0, 40:71]  # one token less than a piece
    assert unseen(other, range(6), pieces_of(Samples.text(measured))) == [0, 1, 3, 5]
    assert unseen(other, [2, 3], pieces_of(Samples.text(measured))) == [3]
    assert unseen(other, range(6), NO_PIECES) == list(range(6))
    assert unseen(other[:, : PIECE - 1], range(6), pieces_of(Samples.text(measured))) == list(range(6))
    assert len(pieces_of(Samples.text(measured[:, :8]))) == 0


def test_one_text_under_several_names(tmp_path: Path) -> None:
    one, link, copy, other = (tmp_path / name for name in ("a.txt", "b.txt", "c.md", "d.txt"))
    one.write_text(made_up_text(100))
    link.symlink_to(one)
    shutil.copy(one, copy)
    other.write_text(made_up_text(101))
    digest = source_digest(str(one))
    assert digest is not None
    for source, same in ((one, True), (link, True), (copy, True), (other, False)):
        assert same_text("a.txt", digest, str(source)) is same
        assert shares_text(QuantizeConfig("m", data=str(one), eval_data=str(source))) is same
    other.rename(one)
    assert not same_text("a.txt", digest, str(one)), "the name says nothing"
    # datasets of the hub have names alone
    assert same_text("owner/set:en", None, "owner/set:en")
    assert not same_text("owner/set:en", None, "owner/set:de")
    assert not same_text("owner/set:en", None, str(copy))
    assert not same_text("a.txt", digest, "owner/set")


def checkpoint(folder: Path, tokenizer: Any, text: Path) -> Path:
    """A folder with the measurement of a checkpoint."""
    ids = windows(tokenizer, text, "calibration", shared=True)
    made = measurement([curve("a", [0.1], [])], data=text.name, text_digest=source_digest(str(text)))
    replace(made, curves={}, pieces=pieces_of(Samples.text(ids))).save(folder / MEASUREMENT)
    return folder


def test_a_checkpoint_knows_its_text(tmp_path: Path, text_file: Path, tiny_tokenizer: Any) -> None:
    folder = checkpoint(tmp_path / "out", tiny_tokenizer, text_file)
    copy, other = tmp_path / "elsewhere.md", tmp_path / text_file.name
    shutil.copy(text_file, copy)
    other.write_text(made_up_text(9000, seed=8))
    assert may_be_measured_on(folder, str(text_file))
    assert may_be_measured_on(folder, str(copy))
    assert not may_be_measured_on(folder, str(other)), "another text of the same name"
    assert may_be_measured_on(tmp_path, str(other)), "nothing is known"
    assert not len(measured_on(tmp_path))
    found = Measurement.load(folder / MEASUREMENT)
    replace(found, pieces=NO_PIECES).save(folder / MEASUREMENT)
    assert may_be_measured_on(folder, str(other)), "an older file does not tell"


@pytest.mark.parametrize("change", ["excerpt", "rows", "line ends", "reordered"])
def test_a_part_of_the_text_does_not_judge(change: str, tmp_path: Path, text_file: Path, tiny_tokenizer: Any) -> None:
    """Also where no digest is the same: all windows that are left share no piece with what was measured on."""
    ids = windows(tiny_tokenizer, text_file, "calibration", shared=True, sequences=200)
    text = text_file.read_text()
    lines = text.splitlines()
    file = tmp_path / ("text.jsonl" if change == "rows" else "text.txt")
    file.write_text(
        {
            "excerpt": text[5000:],
            "rows": "\n".join(json.dumps({"text": line}) for line in lines),
            "line ends": "\r\n".join(lines) + "\r\n",
            "reordered": "\n".join(lines[1200:] + lines[:1200]),
        }[change],
        newline="",
    )
    assert source_digest(str(file)) != source_digest(str(text_file))
    plain = windows(tiny_tokenizer, file, sequences=60)
    clean = windows(tiny_tokenizer, file, sequences=60, seen=pieces_of(Samples.text(ids)))
    if change in ("excerpt", "reordered"):
        assert runs(plain) & runs(ids), "without it they do"
    assert not runs(clean) & runs(ids)


def test_text_that_was_all_measured_on_is_refused(
    tmp_path: Path, tiny_folder: Path, tiny_tokenizer: Any, text_file: Path
) -> None:
    """Before anything is measured."""
    start, longer, text = tmp_path / "start.txt", tmp_path / "longer.txt", text_file.read_text()
    start.write_text(text[:4000])
    longer.write_text(text[:4100])
    count = len(tiny_tokenizer(text[:4000]).input_ids) // 64
    result = natprec(
        "quantize", "--model", tiny_folder, "--data", start, "--eval-data", longer, "--tokens", 2 * count * 64,
        "--eval-tokens", "256", "--sequence-length", "64", "--group-size", "32", "--bits", "6",
        "--out", tmp_path / "out",
    )  # fmt: skip
    assert result.code == 2
    assert "repeat text that was measured on" in result.reason
    assert "measure …" not in result.err
