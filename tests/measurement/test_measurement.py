"""The measurement file: what is saved is loaded, and what is not a measurement says so."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from natprec.errors import InputError, OutputError
from natprec.formats import integer
from natprec.measurement import Measurement
from tests.arrange import curve, measurement

FORMATS = (integer(4, 64), integer(8, 64, False))


def made_up() -> Measurement:
    return measurement(
        [
            curve("layers.1.b", [0.5, 0.1], FORMATS, fused_group="layers.1.a"),
            curve("a", [0.25, 1e-9], FORMATS[:2], pool_count=8),
        ],
        checks=[("a", "int4-g64", 0.25, 0.3)],
        seconds={"measure": 1.5},
    )


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    made_up().save(tmp_path / "measurement.safetensors")
    return tmp_path / "measurement.safetensors"


def test_save_then_load_is_identity(saved: Path) -> None:
    expected, found = made_up(), Measurement.load(saved)
    assert found.header == expected.header
    assert list(found.curves) == list(expected.curves)
    for name, before in expected.curves.items():
        after = found.curves[name]
        assert after.site == before.site
        assert after.formats == before.formats
        for kind in ("forward", "backward", "energy", "shares", "unquantized", "alignment"):
            assert np.array_equal(getattr(after, kind), getattr(before, kind))
    assert found.solve(eps=1.0) == expected.solve(eps=1.0)


def test_missing(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"'.*none' does not exist; write it with natprec measure --out"):
        Measurement.load(tmp_path / "none")


@pytest.mark.parametrize("keep", [0, 5, 100, -1])
def test_cut_off(saved: Path, keep: int) -> None:
    saved.write_bytes(saved.read_bytes()[:keep])
    with pytest.raises(InputError, match=r"damaged or cut off.*measure again"):
        Measurement.load(saved)


def test_other_version(saved: Path) -> None:
    from safetensors import safe_open

    with safe_open(saved, "np") as file:
        metadata = json.loads(file.metadata()["natprec"])
    save_file(load_file(saved), saved, {"natprec": json.dumps({**metadata, "version": 99})})
    with pytest.raises(InputError, match="has version 99; this natprec reads 6 and 7: measure again"):
        Measurement.load(saved)


def test_other_files(tmp_path: Path) -> None:
    other = tmp_path / "model.safetensors"
    save_file({"a": np.zeros(3)}, other)
    with pytest.raises(
        InputError,
        match=r"is a file of weights \(safetensors\), and a measurement is wanted; write it with natprec measure",
    ):
        Measurement.load(other)
    other.write_text("plain text, long enough to look like something else")
    with pytest.raises(InputError, match="damaged or cut off"):
        Measurement.load(other)


def test_unwritable(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="cannot write"):
        made_up().save(tmp_path / "file" / "measurement.safetensors")


def test_interval_is_of_the_named_format() -> None:
    assert made_up().interval("a", 0) == (0.25, 0.25)
