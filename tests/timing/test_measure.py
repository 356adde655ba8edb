"""Products timed: every one once, in turn, medians of what the clock says; interrupted runs go on."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

import pytest
import torch

from natprec.costs import CostTable
from natprec.costs.model import Product
from natprec.errors import InputError
from natprec.formats import activation, parse_format
from natprec.timing import measure, table
from natprec.timing.measure import Natprec, Settings, measure_times, spread
from natprec.timing.products import made_up, stored_weight
from natprec.timing.table import Asked, time_table
from natprec.utils.progress import Stages

CPU = Settings(torch.device("cpu"), repeat=3, milliseconds=0.2)
INT4, INT8 = parse_format("int4-g32"), parse_format("int8-channel")


class Clocked:
    """A product that takes as many made-up seconds as its rows, doubled in the second round."""

    kernel, copies, call = "made up", 4, 0.0

    def __init__(self, product: Product, settings: Settings, working_set: float) -> None:
        self.seconds, self.calls = float(product.rows), 0

    def __call__(self, times: int) -> None:
        self.calls += times


def fake_seconds(runner: Any, times: int, settings: Settings) -> float:
    runner(times)
    return float(runner.seconds * times)


def test_each_product_once_with_its_median(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "seconds", fake_seconds)
    products = [Product(INT4, None, rows, 64, 1) for rows in (8, 16)] + [Product(None, None, 8, 64, 1)] * 2
    kept: list[int] = []
    rows = measure_times(products, CPU, Stages(quiet=True), Clocked, keep=lambda found: kept.append(len(found)))
    assert [(row["weight"], row["rows"], row["microseconds"]) for row in rows] == [
        ("int4-g32", 8, 8e6), ("16 bits", 8, 8e6), ("int4-g32", 16, 16e6),
    ]  # fmt: skip
    assert kept == [2, 3]
    assert all(row["spread"] == 0 and row["kernel"] == "made up" for row in rows)
    again = measure_times(products, CPU, Stages(quiet=True), _refused, known=rows)
    assert again == rows


def _refused(*arguments: object) -> Any:
    raise AssertionError("it was measured before")


def test_spread_is_half_of_the_middle_half() -> None:
    times = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0]
    low, middle, high = statistics.quantiles(times, n=4)
    assert spread(times) == (high - low) / 2 / middle == 0.5
    assert spread([1.0]) == 0.0


@pytest.mark.parametrize("name", ["int4-g32", "int3-g64-asym", "int8-channel"])
def test_made_up_weights_are_what_the_kernels_read(name: str) -> None:
    """Repeated rows: a product with them is the product with the first ones, repeated."""
    fmt = parse_format(name)
    product = Product(fmt, None, 192, 128, 1)
    weight = stored_weight(product, torch.device("cpu"))
    x = torch.randn(2, 128)
    assert torch.allclose(weight.product(x), x @ made_up(fmt, 192, 128).dequantize().T, atol=0.05)
    large = made_up(fmt, 3 * 8192, 128)
    assert large.codes.shape == (3 * 8192, 128)
    assert torch.equal(large.dequantize()[:8192], large.dequantize()[8192 : 2 * 8192])


def test_the_cpus_kernels_are_timed() -> None:
    products = [Product(INT4, None, 64, 64, 1), Product(INT8, activation(8), 64, 64, 1), Product(None, None, 64, 64, 4)]
    rows = measure_times(products, CPU, Stages(quiet=True))
    assert len(rows) == 3
    assert all(0 < row["microseconds"] < 1e6 and row["kernel"] for row in rows)
    assert Natprec(products[0], CPU, 1.0).copies == 1


def asked(**changes: Any) -> Asked:
    values: dict[str, Any] = {
        "engine": "natprec", "gpu": None, "device": "cpu", "tokens": (1,), "repeat": 2, "cpu_time": False, "whole": (),
        "measurement": None, "formats": "int4-g32,16 bits", "shapes": "64x64,128x64",
    }  # fmt: skip
    return Asked(**{**values, **changes})


def test_a_table_says_how_it_was_made_and_is_read_back(tmp_path: Path) -> None:
    made = time_table(asked(), Stages(quiet=True), tmp_path / "costs.toml", resume=False)
    read = CostTable.load(tmp_path / "costs.toml")
    assert {"cpu", "threads", "clock", "clock_mhz", "date", "versions"} <= made.keys()
    assert made["versions"]["torch"] == torch.__version__
    assert read.product(Product(INT4, None, 128, 64, 1)).value == pytest.approx(made["rows"][-2]["microseconds"])
    assert not (tmp_path / "costs.toml.partial").exists()


def test_an_interrupted_run_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    honest = Natprec

    class Dying(Natprec):
        def __init__(self, product: Product, settings: Settings, working_set: float) -> None:
            calls.append(f"{product.rows} {product.formats}")
            if product.rows == 128 and len(calls) < 5:
                raise KeyboardInterrupt
            super().__init__(product, settings, working_set)

    monkeypatch.setattr(table, "Natprec", Dying)
    out = tmp_path / "costs.toml"
    with pytest.raises(KeyboardInterrupt):
        time_table(asked(), Stages(quiet=True), out, resume=False)
    assert not out.exists()
    assert len(CostTable.load(tmp_path / "costs.toml.partial").name) > 0
    monkeypatch.setattr(table, "Natprec", honest)
    file = tmp_path / "costs.toml.partial"
    partial = file.read_text()
    file.write_text(partial.replace(f"threads = {torch.get_num_threads()}", "threads = 63"))
    with pytest.raises(InputError, match="was begun with threads"):
        time_table(asked(), Stages(quiet=True), out, resume=True)
    file.write_text(partial)
    calls.clear()
    monkeypatch.setattr(table, "Natprec", Dying)
    calls += ["", "", "", ""]
    time_table(asked(), Stages(quiet=True), out, resume=True)
    assert sorted(calls[4:]) == ["128 16 bits", "128 int4-g32"], "64 x 64 was measured before"
    assert CostTable.load(out).has(INT4, None)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"gpu": "h200"}, "gpu 'h200': this machine has none that torch can use"),
        ({"engine": "vllm"}, "vllm is not installed; run natprec costs where it is|its kernels run on a GPU"),
        ({"shapes": "64"}, "shape '64': give outputs x inputs"),
        ({"formats": "int4-g96"}, "format 'int4-g96': its groups do not divide the 64 inputs of shape 64x64"),
        ({"formats": "int4"}, "unknown format 'int4'"),
        ({"cpu_time": True}, "cpu-time counts what all threads take"),
    ],
)
def test_what_cannot_be_timed_is_refused(changes: dict[str, Any], said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    with pytest.raises(InputError, match=said):
        time_table(asked(**changes), Stages(quiet=True), None, resume=False)
