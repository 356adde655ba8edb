"""A checkpoint's regular expressions mean what they mean to the library, and take no longer than they may."""

from __future__ import annotations

import json
import re
import shutil
import time
from pathlib import Path

import pytest

from natprec import load
from natprec.checkpoints.dense_reader import load_quantized
from natprec.errors import ModelError
from natprec.models import patterns
from natprec.models.patterns import Targets
from tests.run_command import SMALL, natprec

FOREVER = ["re:(.*)*(.*)*(.*)*!", r"re:(\w*\.?\w*)*!", r"re:((\w|\.)+)+!", "re:(.?){60}!"]
"""Those that take minutes on the name of a module."""


def test_the_meaning_is_that_of_re_match() -> None:
    names = ["model.layers.0.mlp.up_proj", "lm_head", "model.layers.10.self_attn.q_proj", "odd\nname"]
    targets = [r"re:.*self_attn\.(q|k|v)_proj$", r"re:model\.layers\.\d\.", "re:(?!lm).*head", "lm_head", "Linear"]
    found = Targets(targets, names[:2], "folder")
    for name in names:
        for target in targets:
            expected = target.startswith("re:") and re.match(target[3:], name) is not None
            assert found.match(name, [target]) == expected


def test_a_pattern_that_is_none() -> None:
    with pytest.raises(ModelError, match="no regular expression"):
        Targets(["re:(unclosed"], ["name"], "folder")


@pytest.mark.parametrize("where", ["targets", "ignore"])
@pytest.mark.parametrize("pattern", FOREVER)
def test_a_pattern_that_takes_forever(
    tmp_path: Path, rounded: Path, monkeypatch: pytest.MonkeyPatch, pattern: str, where: str
) -> None:
    """In the runtime, and before a verdict."""
    monkeypatch.setattr(patterns, "SECONDS", 1.0)
    folder = Path(shutil.copytree(rounded, tmp_path / "out"))
    config = json.loads((folder / "config.json").read_text())
    scheme = config["quantization_config"]
    groups = list(scheme["config_groups"].values())
    (groups[0]["targets"] if where == "targets" else scheme["ignore"]).append(pattern)
    (folder / "config.json").write_text(json.dumps(config))
    for opened in (load, load_quantized):
        start = time.perf_counter()
        with pytest.raises(ModelError, match="more than 1 s to match; name its modules"):
            opened(folder)
        assert time.perf_counter() - start < 20


@pytest.fixture(scope="module")
def rounded(tmp_path_factory: pytest.TempPathFactory, tiny_folder: Path, text_file: Path) -> Path:
    """A checkpoint of the tiny model."""
    out = tmp_path_factory.mktemp("rounded") / "out"
    options = ("--model", tiny_folder, "--data", text_file, *SMALL, "--eval-tokens", 128, "--rounding", "rtn")
    assert natprec("quantize", *options, "--bits", 5, "--out", out).code == 0
    return out
