"""What a plan says of whoever loads it, and what a person is told."""

from __future__ import annotations

from rich.console import Console

from natprec.formats import Format, activation, integer, parse_format
from natprec.pipeline.summary import plan_table
from natprec.solver import Plan
from natprec.solver.needs import Used, needs_of
from tests.arrange import curve, measurement


def shown(plan: Plan) -> str:
    """The table as text."""
    console = Console(width=200)
    with console.capture() as captured:
        console.print(plan_table(plan))
    return captured.get()


def test_the_newest_of_what_is_used_counts() -> None:
    asymmetric, today = integer(3, 64, symmetric=False), integer(4, 64)
    found = needs_of("vllm", "sm90", [("linear", today, None), ("linear", asymmetric, None)])
    assert found is not None
    assert (found.engine_version, found.transformers, found.untested) == ("0.31.0", False, ["int3-g64-asym"])
    head: Used = ("head", integer(5, 64), None)
    later = needs_of("vllm", "sm90", [("linear", today, None), head])
    assert later is not None
    assert (later.engine_version, later.transformers, later.untested) == ("0.33.0", True, ["int5-g64 (head)"])


def test_what_is_run_otherwise_needs_no_version() -> None:
    """Weights in groups beside 8-bit inputs: vLLM 0.31 and later leave those at 16 bits."""
    assert needs_of("vllm", "any", [("linear", integer(3, 64), activation(8))]) is None
    assert needs_of("natprec", "any", [("linear", integer(3, 64), None)]) is None


def test_a_plan_of_today_is_told_what_loads_it() -> None:
    formats: list[Format] = [integer(bits, 64) for bits in (3, 4, 8)]
    plan = measurement([curve("a", [0.3, 0.1, 0.01], formats), curve("b", [0.4, 0.1, 0.01], formats)]).solve(eps=0.5)
    assert plan.needs is None, "its file stays as it was"
    assert "vllm 0.25.1 or newer; plain transformers loads it" in shown(plan)


def test_what_no_run_has_loaded_is_told() -> None:
    formats = [parse_format("nvfp4"), parse_format("fp8-channel")]
    found = measurement([curve("a", [0.3, 0.01], formats), curve("b", [0.4, 0.01], formats)], gpu="sm90", untested=True)
    plan = found.solve(eps=1.0)
    assert plan.needs is not None
    assert plan.needs.untested == ["nvfp4"]
    assert "no run of vllm has loaded nvfp4" in shown(plan)
    assert "vllm on sm90" in shown(plan)
