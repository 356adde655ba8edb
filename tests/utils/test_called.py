"""Keys of files and of `--json` stay, whatever the code calls its fields."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from safetensors.numpy import load_file

from natprec.errors import InputError
from natprec.formats import integer
from natprec.inspection.ir import Boundary
from natprec.measurement import Measurement
from natprec.models.weight_sites import Site
from natprec.solver.choices import Choice
from natprec.utils.schema import Place, keys, read
from tests.arrange import curve, measurement

PLACE = Place("a file", "write it again")
SITE = Site("b.k", "weight", "linear", (8, 128), ("b.k",), "b.q", 3)


def test_old_keys() -> None:
    assert {"unit": "b.q", "stage": 3}.items() <= SITE.to_json().items()
    assert not {"fused_group", "segment"} & SITE.to_json().keys()
    assert "unit" in keys(Choice).values()
    assert {"source_unit", "target_unit"} <= set(keys(Boundary).values())


def test_reading_inverts_writing() -> None:
    assert read(Site, json.loads(json.dumps(SITE.to_json())), PLACE) == SITE


@pytest.mark.parametrize(("key", "field"), [("unit", "fused_group"), ("stage", "segment")])
def test_a_file_has_no_other_key(key: str, field: str) -> None:
    content = json.loads(json.dumps(SITE.to_json()))
    content[field] = content.pop(key)
    with pytest.raises(InputError, match=f"lacks '{key}'"):
        read(Site, content, PLACE)
    content[key] = content[field]
    with pytest.raises(InputError, match=f"'{field}'"):
        read(Site, content, PLACE)


def test_an_error_names_the_key() -> None:
    with pytest.raises(InputError, match="a file: stage is -2, and must be a whole number, -1 or more"):
        read(Site, json.loads(json.dumps(SITE.to_json())) | {"stage": -2}, PLACE)


def test_arrays(tmp_path: Path) -> None:
    """What storing a site unquantized costs is called `kept` in a measurement."""
    made = measurement([curve("a", [0.1, 0.01], [integer(4, 64), integer(8, 64)])])
    made.save(tmp_path / "m")
    assert (load_file(tmp_path / "m")["a|kept"] == made.curves["a"].unquantized).all()
    assert (Measurement.load(tmp_path / "m").curves["a"].unquantized == made.curves["a"].unquantized).all()
