"""Tables of costs: read strictly, exact where measured, and honest about what lies between."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from natprec.costs import CostTable
from natprec.costs.interpolate import interpolated
from natprec.costs.model import Estimate, Product
from natprec.costs.write import TIMES, is_table, save
from natprec.errors import InputError
from natprec.formats import activation, parse_format

INT4, INT3 = parse_format("int4-g64"), parse_format("int3-g64")
HEADING = {"source": "measured", "unit": "microseconds", "engine": "natprec", "cpu": "a CPU"}


def row(
    weight: str = "int4-g64", rows: int = 64, columns: int = 128, tokens: int = 1, **more: object
) -> dict[str, object]:
    return {"weight": weight, "rows": rows, "columns": columns, "tokens": tokens, "microseconds": 3.0, **more}


def written(folder: Path, *rows: dict[str, object], **heading: object) -> Path:
    save({**HEADING, **heading, "rows": rows}, folder / "costs.toml", TIMES)
    return folder / "costs.toml"


def test_a_measured_product_has_its_cost_and_its_spread(tmp_path: Path) -> None:
    file = written(tmp_path, row(spread=0.02), row("16 bits", inputs="16 bits"), row("int8-channel", inputs="a8-token"))
    table = CostTable.load(file)
    assert is_table(file)
    assert table.product(Product(INT4, None, 64, 128, 1)) == Estimate(3.0, 0.02)
    assert table.has(None, None)
    assert table.has(parse_format("int8-channel"), activation(8))
    assert not table.has(INT4, activation(8))
    assert (table.engine, table.gpu, len(table.digest)) == ("natprec", None, 16)
    file.write_text(file.read_text().replace("3.0", "3.5", 1))
    assert CostTable.load(file).digest != table.digest


def test_tables_of_energy_are_read_too(tmp_path: Path) -> None:
    energy = {"weight": "bfloat16", "inputs": "float", "rows": 8, "columns": 8, "tokens": 1, "joules": 1e-6,
              "joules_ci95": [0.9e-6, 1.1e-6], "seconds": 1e-5, "cv": 0.05}  # fmt: skip
    table = CostTable.load(
        written(tmp_path, energy, {**energy, "weight": "int8-channel", "inputs": "int8"}, unit="joules")
    )
    assert table.product(Product(None, None, 8, 8, 1)) == Estimate(1e-6, 0.05)
    assert table.has(parse_format("int8-channel"), activation(8))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"microseconds": float("nan")}, "microseconds is nan, and must be a number"),
        ({"microseconds": -1.0}, "microseconds is -1.0, and must be a number .*, above 0"),
        ({"microseconds": 0.0}, "above 0"),
        ({"microseconds": float("inf")}, "microseconds is inf"),
        ({"weight": "int9-g64"}, "unknown format 'int9-g64'"),
        ({"inputs": "a9"}, "unknown activation format"),
        ({"rows": 0}, "rows is 0"),
        ({"colums": 3}, "has an unknown key 'colums'"),
    ],
)
def test_a_row_that_cannot_be_is_refused_by_name(tmp_path: Path, change: dict[str, object], said: str) -> None:
    file = written(tmp_path, row(), {**row(rows=96), **change})
    with pytest.raises(InputError, match=rf"table of costs .*costs.toml.*rows\[1\].*{said}"):
        CostTable.load(file)


def test_a_table_that_cannot_be_is_refused(tmp_path: Path) -> None:
    for heading, rows, said in (
        ({"unit": "watts"}, [row()], "unit is an unknown name 'watts'"),
        ({}, [], "lacks 'rows'|rows are none"),
        ({}, [row(), row()], "a second time"),
        ({"unit": "joules"}, [row()], "lacks 'joules', which is the table's unit"),
    ):
        with pytest.raises(InputError, match=said):
            CostTable.load(written(tmp_path, *rows, **heading))
    (tmp_path / "costs.toml").write_text("rows = [")
    with pytest.raises(InputError, match="is not TOML"):
        CostTable.load(tmp_path / "costs.toml")
    with pytest.raises(InputError, match="make one with natprec costs"):
        CostTable.load(tmp_path / "nothing.toml")


def test_lacking_formats_are_named(tmp_path: Path) -> None:
    table = CostTable.load(written(tmp_path, row()))
    table.refuse_lacking([(INT4, None)])
    with pytest.raises(InputError, match=r"lacks 16 bits, int3-g64, int4-g64/a8-token, which .* it has int4-g64;"):
        table.refuse_lacking([(INT4, None), (INT3, None), (None, None), (INT4, activation(8))])


@settings(max_examples=60, deadline=None)
@given(start=st.floats(0, 10), slope=st.floats(1e-6, 1e-3), rows=st.integers(8, 5000), columns=st.integers(8, 5000))
def test_shapes_on_a_line_are_interpolated_without_error(start: float, slope: float, rows: int, columns: int) -> None:
    shapes = [(256, 256), (1024, 256), (1024, 1024), (4096, 1024)]
    points = {(INT4, None): {each: {1: Estimate(start + slope * each[0] * each[1], 0.0)} for each in shapes}}
    found = interpolated(points, Product(INT4, None, rows, columns, 1))
    assert found.value == pytest.approx(start + slope * rows * columns, rel=1e-6)
    assert found.error == pytest.approx(0, abs=1e-6)


def test_the_error_is_what_leaving_a_shape_out_would_have_made() -> None:
    """Of times that jump, so that no line fits; the worst of the four."""
    shapes = {(64, 64): 1.0, (128, 64): 3.0, (128, 128): 3.5, (256, 128): 9.0}
    points = {(INT4, None): {shape: {1: Estimate(value, 0.0)} for shape, value in shapes.items()}}
    found = interpolated(points, Product(INT4, None, 192, 128, 1))
    worst = 0.0
    for left_out, value in shapes.items():
        rest = {(INT4, None): {each: costs for each, costs in points[INT4, None].items() if each != left_out}}
        worst = max(worst, abs(interpolated(rest, Product(INT4, None, *left_out, 1)).value / value - 1))
    assert found.error == pytest.approx(worst)
    assert worst > 0.1


def test_few_shapes_are_told_in_proportion_to_other_formats() -> None:
    known = {
        (INT4, None): {(64, 64): {1: Estimate(2.0, 0.0)}, (128, 64): {1: Estimate(3.0, 0.0)}},
        (None, None): {(64, 64): {1: Estimate(4.0, 0.0)}, (128, 64): {1: Estimate(8.0, 0.0)}},
        (INT3, None): {(64, 64): {1: Estimate(10.0, 0.0)}},
    }
    found = interpolated(known, Product(INT3, None, 128, 64, 1))
    assert found.value == pytest.approx(10 * 1.75)
    assert found.error == pytest.approx(0.25 / 1.75)
    with pytest.raises(InputError, match="was measured for 64 × 64, and 999 × 64 at 1 tokens cannot be told"):
        interpolated(known, Product(INT3, None, 999, 64, 1))


def test_tokens_between_two_that_were_measured() -> None:
    known = {(INT4, None): {(64, 64): {1: Estimate(10.0, 0.01), 100: Estimate(109.0, 0.01)}}}
    found = interpolated(known, Product(INT4, None, 64, 64, 50))
    assert found.value == pytest.approx(59)
    assert found.error == pytest.approx((59 - 54.5) / 59)
    with pytest.raises(InputError, match="measured for 1, 100 tokens, and 512 is asked for; measure with --tokens 512"):
        interpolated(known, Product(INT4, None, 64, 64, 512))
