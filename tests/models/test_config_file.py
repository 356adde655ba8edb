"""config.json: whoever needs it is told what is wrong, and whoever looks finds nothing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from natprec.checkpoints.engine_layers import describe
from natprec.errors import InputError
from natprec.models.config_file import found_object, quantization_of, read_config
from natprec.models.stored_config import read_description

CONTENTS = {
    "missing": (None, "it has no config.json"),
    "cut": (b'{"model_type": "lla', "cannot be read"),
    "binary": (b"\xff\xfe", "cannot be read"),
    "deep": (b"[" * 100_000, "cannot be read"),
    "list": (b"[1]", "holds no object"),
}


@pytest.mark.parametrize("name", CONTENTS)
@pytest.mark.parametrize("reader", [read_config, read_description, describe])
def test_what_is_wrong_is_said(name: str, reader: object, tmp_path: Path) -> None:
    content, said = CONTENTS[name]
    if content is not None:
        (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(InputError, match=said) as caught:
        reader(tmp_path)  # type: ignore[operator]
    assert "; give " in str(caught.value)
    assert found_object(tmp_path / "config.json") == {}


@pytest.mark.parametrize("reader", [read_description, describe])
@pytest.mark.parametrize("value", [{}, {"quantization_config": 3}, {"text_config": {"quantization_config": None}}])
def test_no_quantization_is_said(reader: object, value: object, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(value))
    (tmp_path / "model.safetensors").write_bytes((2).to_bytes(8, "little") + b"{}")
    with pytest.raises(InputError, match="no 'quantization_config'"):
        reader(tmp_path)  # type: ignore[operator]


def test_a_quantization_of_the_text_part_is_found() -> None:
    inner = {"quant_method": "fp8"}
    assert quantization_of({"text_config": {"quantization_config": inner}}) == inner
    assert quantization_of({"quantization_config": {}, "text_config": 3}) is None
