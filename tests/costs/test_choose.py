"""Which costs answer `--minimize`, and what is refused by name."""

from __future__ import annotations

from pathlib import Path

import pytest

from natprec.costs import costs_for
from natprec.costs.model import Product
from natprec.costs.peaks import peaks
from natprec.costs.roofline import Roofline
from natprec.costs.table import CostTable
from natprec.errors import InputError
from natprec.formats import activation, parse_format
from tests.costs.test_table import row, written

INT4 = parse_format("int4-g64")


def test_bytes_need_no_table(tmp_path: Path) -> None:
    assert costs_for("bytes", "vllm", None, None) is None
    with pytest.raises(InputError, match="bytes need no table"):
        costs_for("bytes", "natprec", None, written(tmp_path, row()))


def test_joules_are_refused_without_a_measured_table(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="minimize 'joules' needs a measured table"):
        costs_for("joules", "natprec", "h200", None)
    with pytest.raises(InputError, match="has microseconds, and --minimize joules adds up joules"):
        costs_for("joules", "natprec", None, written(tmp_path, row()))
    computed = written(tmp_path, row(joules=1e-6), unit="joules", source="roofline")
    with pytest.raises(InputError, match=r"is computed .roofline.; joules must be measured"):
        costs_for("joules", "natprec", None, computed)


def test_a_table_of_another_engine_or_gpu_says_what_it_is_of(tmp_path: Path) -> None:
    file = written(tmp_path, row())
    with pytest.raises(InputError, match="is of engine 'natprec' on a CPU, and the plan is for engine 'vllm'"):
        costs_for("decode", "vllm", None, file)
    with pytest.raises(InputError, match="is of engine 'natprec' on a CPU, and --gpu is 'h100'"):
        costs_for("decode", "natprec", "h100", file)
    file = written(tmp_path, row(), gpu="NVIDIA H100 80GB HBM3", engine="vllm")
    for same in ("h100", "H100", "sm90", "any", None):
        assert costs_for("decode", "vllm", same, file) == CostTable.load(file)
    for other in ("h200", "sm89", "rtx4090"):
        with pytest.raises(InputError, match=f"on NVIDIA H100 80GB HBM3, and --gpu is '{other}'"):
            costs_for("decode", "vllm", other, file)


def test_natprecs_own_table_of_an_h200() -> None:
    costs = costs_for("decode", "natprec", "NVIDIA H200", None)
    assert costs is not None
    assert (costs.source, costs.unit, costs.complete) == ("measured", "microseconds", False)
    assert costs.product(Product(INT4, None, 4096, 14336, 1)).value == 24.5
    found = costs.product(Product(parse_format("int3-g64"), None, 4096, 14336, 1))
    assert found.value > 24.5, "3 bits take longer than 4 there"
    assert found.error is not None


def test_a_roofline_is_bytes_or_operations_whichever_is_longer() -> None:
    costs = costs_for("decode", "vllm", "h100", None)
    assert isinstance(costs, Roofline)
    bandwidth, rate = peaks()["bandwidth"]["h100"].high, peaks()["operations_per_second"]["h100"]
    one = costs.product(Product(INT4, None, 4096, 4096, 1))
    moved = INT4.stored_bytes(4096, 4096) + 2 * (4096 + 4096)
    assert one.value == pytest.approx(1e6 * moved / bandwidth)
    many = costs.product(Product(INT4, None, 4096, 4096, 4096))
    assert many.value == pytest.approx(1e6 * 2 * 4096**3 / rate.low)
    narrow = costs.product(Product(parse_format("int8-channel"), activation(8), 4096, 4096, 4096))
    assert narrow.value == pytest.approx(1e6 * 2 * 4096**3 / rate.high)
    assert one.error is None


@pytest.mark.parametrize(
    ("engine", "gpu", "said"),
    [
        ("natprec", None, "no table of costs of engine 'natprec' here, and a CPU has no published peaks"),
        ("vllm", None, "no one GPU is named"),
        ("vllm", "any", "no one GPU is named"),
        ("vllm", "sm90", "no published bandwidth and rates of it .* only of h100"),
        ("vllm", "rtx3090", "only of h100"),
        ("transformers", "h100", "engine 'transformers' has no kernels whose costs natprec knows"),
    ],
)
def test_without_a_table_or_a_roofline_it_is_refused(engine: str, gpu: str | None, said: str) -> None:
    with pytest.raises(InputError, match=said):
        costs_for("decode", engine, gpu, None)
