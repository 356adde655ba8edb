"""Floors follow from bits, bytes and peaks; a measurement below one is none; an estimate contains its own floor."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from natprec.energy.anchors import Fit, fit, published
from natprec.energy.constants import BASES, constants, grids, of_gpu
from natprec.energy.convert import parse_tariff
from natprec.energy.counters.base import LEFT_OUT, Description
from natprec.energy.estimate import estimate
from natprec.energy.floors import floor_of
from natprec.energy.footprint import Footprint
from natprec.energy.inspected import erased_bits
from natprec.energy.plot import by_batch, by_kl, draw_row
from natprec.energy.result import report
from natprec.energy.run import Machine, Part, Run
from natprec.energy.window import Window
from natprec.errors import InputError
from natprec.utils.statistics import t_interval

OWN = Footprint(1_000_000_000, 500_000_000, 100.0, 0.0)
COUNTER = Description("csv", "meter.csv", "wall", None, LEFT_OUT["wall"])


def run_of(joules: float | None, own: Footprint = OWN, phase: str = "decode", **more: Any) -> Run:
    """Five windows of 5 s and 500 tokens, one of them 1 % above, one below."""
    windows = tuple(
        Window(10.0 * at, 10.0 * at + 5, 500, 0.0, None if joules is None else joules * share)
        for at, share in enumerate((1.0, 1.01, 0.99, 1.0, 1.0))
    )
    part = Part("checkpoint", phase, 4, 100, 20, windows, "int4", own, 5.0, 1000.0)
    made = Run("m", None, None, "now", {}, Machine("cpu", 2), "ignore", 5.0, 0, (part,))
    return replace(made, counter=None if joules is None else COUNTER, **more)


def test_floors_of_a_step() -> None:
    per_bit = 1.380649e-23 * 300 * math.log(2)
    made = floor_of(OWN, phase="decode", batch=4, prompt=100, new=20, choice_bits=5.0, erased_bits=1000.0)
    moved = (1e9 + 4 * 110 * 100) / 4
    assert made.bytes_moved == moved
    assert made.bytes_joules == pytest.approx(8 * moved * 3.9e-12)
    assert made.landauer_joules == pytest.approx(per_bit * (5 + 8e9 / 4 + 1000))
    assert made.roofline_seconds is None, "no published peak of a CPU"
    gpu = floor_of(OWN, phase="decode", batch=4, prompt=100, new=20, choice_bits=5.0, gpu="NVIDIA H200")
    assert gpu.roofline_seconds == pytest.approx(moved / 4.8e12)
    many = floor_of(OWN, phase="prefill", batch=64, prompt=4000, new=20, choice_bits=5.0, gpu="NVIDIA H200")
    assert many.roofline_seconds == pytest.approx(1e9 / 1979e12)
    assert many.selection_joules is None, "a prompt's tokens are not chosen"
    kept = floor_of(replace(OWN, on_chip_bytes=2e9), phase="decode", batch=4, prompt=1, new=2, choice_bits=None)
    assert kept.bytes_joules is None, "the processor may have kept all of it"
    cold = floor_of(OWN, phase="decode", batch=4, prompt=100, new=20, choice_bits=5.0, kelvin=150.0)
    assert cold.weights_joules == pytest.approx(made.weights_joules / 2)  # type: ignore[operator]


def test_the_figures_of_a_row() -> None:
    row = report(run_of(1000.0, tariff_per_kwh=0.3, currency="EUR", grid_grams=400.0, pue=1.5))["rows"][0]
    assert row["joules_per_token"] == pytest.approx(2.0)
    assert row["watts"] == pytest.approx(200.0)
    assert row["tokens_per_second"] == 100.0
    low, high = t_interval([2.0, 2.02, 1.98, 2.0, 2.0])
    assert row["joules_per_token_ci95"] == pytest.approx([low, high])
    assert row["cv"] == pytest.approx(0.00707, rel=0.01)
    assert row["bits_of_choice_per_joule"] == pytest.approx(2.5)
    assert row["cost_per_million"]["value"] == pytest.approx(2 / 3.6 * 1.5 * 0.3)
    assert row["co2_grams_per_million"] == pytest.approx(2 / 3.6 * 1.5 * 400)
    assert row["joules_per_token_net"] is None, "idle was to be ignored"
    bits = row["floor"]["greatest_bits_per_joule"]
    assert bits["bytes"] == pytest.approx(5.0 / row["floor"]["bytes_joules"])
    assert bits["landauer"] > bits["bytes"] > row["bits_of_choice_per_joule"]
    most = row["floor"]["greatest_tokens_per_wh"]
    assert most["bytes"] == pytest.approx(3600 / row["floor"]["bytes_joules"])
    assert most["landauer"] > most["bytes"] > row["tokens_per_wh"]
    steps = report(run_of(1000.0))["erased_bits"][0]["steps"]
    assert [each["bits_per_token"] for each in steps] == [5.0, 2e9, 1000.0, None]
    assert steps[3]["joules_per_token"] == pytest.approx(sum(each["joules_per_token"] for each in steps[:3]))
    assert report(run_of(1000.0, idle="50.0"))["rows"][0]["joules_per_token_net"] == pytest.approx(1.5)


def test_a_measurement_below_a_floor_is_a_fault_of_the_measurement() -> None:
    found = report(run_of(1.0))
    row = found["rows"][0]
    assert row["joules_per_token"] is None
    assert row["watts"] is None
    assert "a fault of the measurement: 0.002 J per token lie below the floor of the bytes moved" in row["refused"]
    assert found["refused"] == [f"checkpoint, decode, batch 4: {row['refused']}"]
    gpu = run_of(1e6, machine=Machine("cpu", 2, gpu="NVIDIA H200"))
    fast = tuple(replace(part, windows=tuple(replace(each, stop=each.start + 1e-9) for each in part.windows))
                 for part in gpu.parts)  # fmt: skip
    assert "below the roofline" in report(replace(gpu, parts=fast))["rows"][0]["refused"]


def test_an_estimate_grows_with_what_it_is_made_of() -> None:
    def made(**more: Any) -> Any:
        given = {"seconds": 0.01, "tokens": 4, "bytes_read": 1e9, "threads": 2, **more}
        return estimate(OWN, **given)

    base = made()
    assert base.low == pytest.approx(1.9 * 2 * 0.01)
    assert base.high == pytest.approx(10.6 * 2 * 0.01 + 2e9 * 25e-12 + 1e9 * 2.3e-12)
    assert made(seconds=0.02).low == 2 * base.low
    assert made(bytes_read=2e9).high > base.high
    gpu = made(gpu="NVIDIA H200")
    assert gpu.low == pytest.approx(2e9 * 3.9e-12 + 1e9 * 0.8e-12)
    assert gpu.high == pytest.approx(7.0)
    assert made(gpu="NVIDIA H200", limit_watts=500.0).high == pytest.approx(5.0)
    assert made(gpu="NVIDIA A10") is None, "its rated power is not known"
    row = report(run_of(None, machine=Machine("cpu", 2, gpu="NVIDIA A10")))["rows"][0]
    assert row["refused"] == "no counter, and an ESTIMATE needs the GPU's rated power"
    assert report(run_of(None))["rows"][0]["joules_per_token_interval"][0] > 0


def test_constants_have_a_source_and_an_order() -> None:
    for kind in ("joules_per_bit", "joules_per_operation", "watts_per_thread", "board_watts", "bandwidth", "pue"):
        for each in constants(kind).values():
            assert 0 < each.low <= each.high, each.name
            assert each.source
            assert each.unit
            assert each.basis in BASES
    assert min(each.low for each in constants("joules_per_bit").values()) == constants("joules_per_bit")["hbm2"].low
    assert all(0 < grams < 1000 for grams in grids().values())
    assert of_gpu("bandwidth", "NVIDIA H100 80GB HBM3") is not None
    assert of_gpu("bandwidth", "NVIDIA H100 PCIe") is None, "another board"
    assert of_gpu("board_watts", "NVIDIA H100 PCIe").high == 350  # type: ignore[union-attr]
    assert of_gpu("board_watts", "NVIDIA GeForce RTX 4090").high == 450  # type: ignore[union-attr]


def test_published_rows_and_their_fits() -> None:
    exact = fit([1, 2, 8], [5.0, 3.0, 1.5])
    assert (exact.a, exact.b, exact.worst) == pytest.approx((1.0, 4.0, 0.0), abs=1e-9)
    found = published()
    for each in found["models"]:
        line = Fit(**each["fit"])
        errors = [abs(line.at(b) / e - 1) for b, e in zip(each["batches"], each["joules_per_token"], strict=True)]
        assert max(errors) == pytest.approx(line.worst)
        assert line.a > 0
        assert line.b > 0
    llama = next(
        each for each in found["models"] if each["model"].endswith("3.1-8B-Instruct") and each["gpu"] == "H100"
    )
    assert llama["fit"]["a"] == pytest.approx(0.067, rel=0.03)
    assert llama["fit"]["b"] == pytest.approx(3.16, rel=0.03)
    assert [round(each["tokens_per_wh"]) for each in found["founding"]] == [160, 1500]
    assert max(llama["tokens_per_wh"]) / 1500 > 20


def test_the_interval_is_students() -> None:
    """Against quantiles from a table: 2.776 at 4, 2.262 at 9, 2.045 at 29 degrees of freedom."""
    for count, quantile in ((5, 2.776), (10, 2.262), (30, 2.045)):
        values = [float(each) for each in range(count)]
        low, high = t_interval(values)
        spread = math.sqrt(sum((each - (count - 1) / 2) ** 2 for each in values) / (count - 1) / count)
        assert (high - low) / 2 / spread == pytest.approx(quantile, rel=0.004)


def test_tariffs() -> None:
    for text in ("0.30EUR/kWh", "0.30 EUR/kWh", "EUR 0.30/kWh", "€0.30/kWh", "300 eur/MWh"):
        found = parse_tariff(text)
        assert (found.per_kwh, found.currency) == (pytest.approx(0.3), "EUR")


def test_bits_of_an_inspection(tmp_path: Path) -> None:
    file = tmp_path / "inspection.json"
    boundaries = [{"kind": "activation", "erased_bits": 30.0}, {"kind": "weight", "erased_bits": 1e9},
                  {"kind": "activation", "erased_bits": 10.0}]  # fmt: skip
    file.write_text(json.dumps({"boundaries": boundaries, "tokens": 8}))
    assert erased_bits(file) == 5.0
    for value in ({"boundaries": boundaries}, {"tokens": 8}, {"boundaries": [{}], "tokens": 8}, [],
                  {"boundaries": boundaries, "tokens": 0}):  # fmt: skip
        file.write_text(json.dumps(value))
        with pytest.raises(InputError, match="run natprec inspect again"):
            erased_bits(file)


def test_an_estimate_is_drawn_hatched_with_the_word_on_it(tmp_path: Path) -> None:
    figure = pytest.importorskip("matplotlib.figure").Figure
    estimated, measured = report(run_of(None)), report(run_of(1000.0))
    axes = figure().subplots()
    draw_row(axes, 4, measured["rows"][0], "joules_per_token", "own")
    assert not any(each.get_hatch() for each in axes.collections)
    assert [each.get_text() for each in axes.texts] == ["own"]
    axes = figure().subplots()
    draw_row(axes, 4, estimated["rows"][0], "joules_per_token", "own")
    assert [each.get_hatch() for each in axes.collections] == ["////"]
    assert not axes.lines, "no point inside an interval"
    assert [each.get_text() for each in axes.texts] == ["own\nESTIMATE"]
    by_batch([("own", estimated), ("other", measured)], [], tmp_path / "batch.svg")
    by_kl([("own", 0.01, estimated["rows"][0]), ("other", 0.1, measured["rows"][0])], tmp_path / "kl.svg")
    for name, words in (("batch.svg", ("ESTIMATE", "joules per token")), ("kl.svg", ("ESTIMATE", "nats per token"))):
        content = (tmp_path / name).read_text()
        assert all(word in content for word in words)
