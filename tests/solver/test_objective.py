"""Plans of least cost: against all combinations, for every cost; and what each decision adds."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from natprec.costs import MINIMIZE, CostTable, costs_for
from natprec.costs.write import TIMES, save
from natprec.errors import InputError
from natprec.formats import Format, engine_profile, integer, parse_format
from natprec.measurement import Measurement
from natprec.solver import solve
from natprec.solver.allocation import staircase
from natprec.solver.fused_groups import groups_of
from natprec.solver.ladder import ladder
from natprec.solver.objective import Objective, products_asked
from natprec.solver.pareto import dominated, priced
from natprec.solver.site_costs import named_bytes
from tests.arrange import curve, measurement

FORMATS = tuple(integer(bits, 64) for bits in (2, 3, 4, 8))
SHAPES = ((64, 128), (192, 128), (128, 64), (320, 64), (64, 192))


def made_up(seed: int = 0, **changes: object) -> Measurement:
    """Four decisions, the first of two sites that share an input, and a head that stays at 16 bits."""
    draw = np.random.default_rng(seed)
    curves = []
    for number, shape in enumerate(SHAPES):
        kl = [float(draw.lognormal() * 4.0**-fmt.bits) for fmt in FORMATS]
        group = "s0" if number < 2 else None
        curves.append(curve(f"s{number}", sorted(kl, reverse=True), FORMATS, shape=shape, fused_group=group))
    curves.append(curve("head", [], (), shape=(512, 64), role="embedding"))
    return measurement(curves, **{"engine": "natprec", **changes})


def table(folder: Path, seed: int, unit: str = "microseconds", tokens: tuple[int, ...] = (1, 512)) -> Path:
    """Of all products of `made_up`, costs that follow neither bytes nor widths."""
    draw, rows = np.random.default_rng(seed + 100), []
    for height, width in ((256, 128), (128, 64), (320, 64), (64, 192), (512, 64)):
        for weight in (*(fmt.name for fmt in FORMATS), "16 bits"):
            for count in tokens:
                cost = float(draw.uniform(1, 9)) * count
                rows.append(
                    {"weight": weight, "rows": height, "columns": width, "tokens": count, unit: cost, "spread": 0.02}
                )
    save({"source": "measured", "unit": unit, "engine": "natprec", "rows": rows}, folder / f"{unit}.toml", TIMES)
    return folder / f"{unit}.toml"


def options(folder: Path, minimize: str, seed: int) -> dict[str, object]:
    if minimize == "bytes":
        return {}
    return {"minimize": minimize, "costs": table(folder, seed, "joules" if minimize == "joules" else "microseconds")}


@pytest.mark.parametrize("minimize", MINIMIZE)
@pytest.mark.parametrize("seed", range(3))
def test_no_plan_within_eps_is_cheaper(tmp_path: Path, minimize: str, seed: int) -> None:
    """Of all 4^4 combinations; at the steps of the staircase the plan is the cheapest, between them within one step."""
    made, chosen = made_up(seed), options(tmp_path, minimize, seed)
    objective = Objective()
    if minimize != "bytes":
        objective = Objective(minimize, costs_for(minimize, "natprec", None, Path(str(chosen["costs"]))))
    groups = groups_of(made, engine_profile("natprec"), "rtn", "16", None, objective)
    kl = np.array([sum(each) for each in itertools.product(*(group.decision.kl for group in groups))])
    costs = np.array([sum(each) for each in itertools.product(*(group.decision.stored for group in groups))])
    beside = 2 * 512 * 64 + 1500 + named_bytes(made, engine_profile("natprec"))
    fixed = beside if minimize == "bytes" else objective.estimate(
        [made.curves["head"]], None, None, engine_profile("natprec"), made.header
    ).value  # fmt: skip
    steps = staircase([group.decision for group in groups])
    assert len(steps.kl) > 3
    for step in steps.kl:
        plan = solve(made, 1.0, eps_solved=float(step) * (1 + 1e-12), rounding="rtn", **chosen)
        assert plan.cost == pytest.approx(costs[kl <= step * (1 + 1e-9)].min() + fixed)
        assert plan.minimize == minimize
    for eps in np.geomspace(kl.min() * 1.01, kl.max(), 12):
        plan = solve(made, float(eps), margin=0.0, rounding="rtn", **chosen)
        largest = float(np.diff(-steps.stored).max())
        assert plan.kl_predicted <= eps * (1 + 1e-12)
        assert plan.cost is not None
        assert plan.cost <= costs[kl <= eps].min() + fixed + largest


@pytest.mark.parametrize("minimize", MINIMIZE)
def test_the_predicted_cost_falls_as_eps_grows(tmp_path: Path, minimize: str) -> None:
    made, chosen = made_up(), options(tmp_path, minimize, 0)
    found = [solve(made, float(eps), rounding="rtn", **chosen).cost for eps in np.geomspace(0.01, 3, 40)]
    assert all(later <= earlier for earlier, later in itertools.pairwise(found))
    assert len(set(found)) > 3


def test_a_plan_names_its_cost_its_table_and_the_digest(tmp_path: Path) -> None:
    made, file = made_up(), table(tmp_path, 0)
    plan = solve(made, 0.3, minimize="decode", costs=file)
    said = plan.to_json()
    assert (said["minimize"], said["cost_unit"], said["cost_source"]) == ("decode", "microseconds", "measured")
    assert (said["cost_table"], len(said["cost_digest"])) == ("microseconds.toml", 16)
    assert said["cost_error"] == pytest.approx(0.02)
    plan.save(tmp_path / "plan.json")
    assert type(plan).load(tmp_path / "plan.json") == plan
    said = solve(made, 0.3).to_json()
    assert (said["cost"], said["cost_unit"], said["cost_source"]) == (said["stored_bytes"], "bytes", "counted")


def test_what_a_decision_adds() -> None:
    """Fused weights are one product of all rows; a tied embedding is the head, an untied one nothing."""
    made, profile = made_up(), engine_profile("natprec")
    objective = Objective("decode")
    both = [made.curves["s0"], made.curves["s1"]]
    fused = objective.products(both, None, None, profile, made.header)
    assert [(each.rows, each.columns, each.tokens) for each, _ in fused] == [(256, 128, 1)]
    apart = objective.products(both, None, None, engine_profile("llama.cpp"), made.header)
    assert [each.rows for each, _ in apart] == [64, 192]
    head = made.curves["head"]
    assert objective.products([head], None, None, profile, made.header) == []
    tied = replace(head, site=replace(head.site, uses=("head", "lm_head")))
    for minimize in ("decode", "prefill"):
        found = Objective(minimize).products([tied], None, None, profile, made.header)
        assert [(each.rows, each.tokens, times) for each, times in found] == [(512, 1, 1.0)]
    expert = replace(made.curves["s2"], tokens=8, site=replace(made.curves["s2"].site, experts="mlp"))
    assert objective.products([expert], None, None, profile, made.header)[0][1] == 8 / 32
    with pytest.raises(InputError, match=r"engine 'vllm' runs the experts .* in kernels of their own"):
        objective.products([expert], None, None, engine_profile("vllm"), made.header)


def test_lacking_formats_and_sizes_are_refused(tmp_path: Path) -> None:
    made, file = made_up(), table(tmp_path, 0)
    file.write_text(file.read_text().replace("int3-g64", "int5-g64"))
    with pytest.raises(InputError, match=r"table of costs 'microseconds.toml' lacks int3-g64, which the plan may use"):
        solve(made, 0.3, minimize="decode", costs=file)
    for size in ({"bits": 4.0}, {"max_size": 1e6}):
        with pytest.raises(InputError, match="a size says already what the plan is the least of"):
            solve(made, minimize="decode", costs=table(tmp_path, 0), **size)
    with pytest.raises(InputError, match=r"minimize 'time'"):
        solve(made, 0.3, minimize="time")


def test_what_is_asked_for_is_enough(tmp_path: Path) -> None:
    """A table of exactly those products solves; without a format it does not."""
    made = made_up()
    asked = products_asked(made, engine_profile("natprec"), (1,))
    rows = [
        {"weight": each.weight.name if each.weight else "16 bits", "rows": each.rows, "columns": each.columns,
         "tokens": each.tokens, "microseconds": 1.0 + index} for index, each in enumerate(asked)
    ]  # fmt: skip
    assert len(rows) == 4 * 5

    def solved(some: list[dict[str, object]]) -> None:
        heading = {"source": "measured", "unit": "microseconds", "engine": "natprec"}
        save({**heading, "rows": some}, tmp_path / "t.toml", TIMES)
        solve(made, 0.3, minimize="decode", costs=tmp_path / "t.toml")

    solved(rows)
    for weight in ("int2-g64", "int8-g64"):
        with pytest.raises(InputError, match=f"lacks {weight}"):
            solved([each for each in rows if each["weight"] != weight])


def test_the_table_that_natprec_ships_leaves_out_what_it_lacks() -> None:
    """Symmetric groups of 64 on an H200; formats with zero points are no candidates there."""
    formats = tuple(parse_format(name) for name in ("int3-g64", "int4-g64", "int4-g64-asym", "int8-g64"))
    made = measurement(
        [curve(f"s{n}", [4.0, 2.0, 1.0, 0.1], formats, shape=(4096, 4096)) for n in range(3)], engine="natprec"
    )
    plan = solve(made, 3.5, minimize="decode", gpu="h200", rounding="rtn")
    assert plan.cost_table == "natprec-h200.toml"
    assert plan.gpu is None, "formats do not depend on it"
    used = {choice.format for choice in plan.sites.values()}
    assert formats[2] not in used
    assert formats[0] not in used, "3 bits are slower than 4 there"
    with pytest.raises(InputError, match="gpu 'h200': natprec knows what vllm runs by GPU"):
        solve(made, 3.5, gpu="h200")


def test_each_site_takes_the_cheapest_format_within_its_tolerance(tmp_path: Path) -> None:
    made, file = made_up(), table(tmp_path, 1)
    plan = solve(made, 0.02, eps_scope="site", minimize="decode", costs=file, rounding="rtn")
    groups = groups_of(made, engine_profile("natprec"), "rtn", "16", None, Objective("decode", CostTable.load(file)))
    for group in groups:
        decision = group.decision
        best = np.where(decision.worst <= 0.02, decision.stored, np.inf).argmin()
        assert plan.sites[group.curves[0].site.name].format == group.pairs[best].weight


def test_dominated_is_the_definition() -> None:
    points = [(1.0, 5.0, 3.0), (1.0, 5.0, 3.0), (0.5, 6.0, 3.0), (1.0, 6.0, 3.0), (2.0, 4.0, 9.0)]
    assert dominated(points) == [False, False, False, True, False]


def test_a_ladder_has_both_kinds_of_plans_in_three_dimensions(tmp_path: Path) -> None:
    made, file = made_up(3), table(tmp_path, 3)
    rungs = ladder(made, minimize="decode", costs=file)
    assert {rung.minimize for rung in rungs} == {"decode", "bytes"}
    assert {rung.cost_unit for rung in rungs} == {"microseconds"}
    points = [(rung.kl_predicted, rung.stored_bytes, rung.cost) for rung in rungs]
    assert [rung.dominated for rung in rungs] == dominated(points)
    for rung in rungs:
        plan = solve(made, rung.eps, minimize=rung.minimize, costs=file if rung.minimize == "decode" else None)
        again = priced(made, plan, Objective("decode", CostTable.load(file)))
        assert rung.cost == pytest.approx(again.cost)
        if rung.minimize == "decode":
            assert plan.cost == pytest.approx(again.cost)
    by_eps = {(rung.eps, rung.minimize): rung.cost for rung in rungs}
    pairs = [
        (by_eps[eps, "decode"], cost)
        for (eps, kind), cost in by_eps.items()
        if kind == "bytes" and (eps, "decode") in by_eps
    ]
    assert pairs
    assert any(fast < small for fast, small in pairs)


def four_bit() -> tuple[Format, ...]:
    return tuple(parse_format(name) for name in ("fp4-g64-dq", "nf4-g64", "nf4-g64-dq"))


def test_sixteen_bits_are_a_choice_where_any_layer_may_be_left_alone() -> None:
    """Against all combinations: which layers bitsandbytes leaves at 16 bits."""
    draw = np.random.default_rng(0)
    formats = four_bit()
    made = measurement(
        [
            curve(f"s{n}", [float(draw.lognormal()) * f for f in (2, 1, 1.1)], formats, shape=(64 * (n + 1), 256))
            for n in range(4)
        ],
        engine="bitsandbytes",
    )
    groups = groups_of(made, engine_profile("bitsandbytes"), "rtn", "16", None)
    assert all(group.pairs[-1].weight is None and group.pairs[-1].name == "16 bits" for group in groups)
    assert all(
        group.decision.kl[-1] == 0 and group.decision.stored[-1] == 2 * group.decision.elements for group in groups
    )
    kl = np.array([sum(each) for each in itertools.product(*(group.decision.kl for group in groups))])
    stored = np.array([sum(each) for each in itertools.product(*(group.decision.stored for group in groups))])
    elements = sum(group.decision.elements for group in groups)
    seen = set()
    for weighs in staircase([group.decision for group in groups]).stored:
        plan = solve(made, bits=8 * weighs / elements * (1 + 1e-12), rounding="rtn")
        assert plan.kl_predicted == pytest.approx(kl[stored <= weighs * (1 + 1e-9)].min())
        assert plan.bits_per_weight == pytest.approx(8 * sum(c.stored_bytes for c in plan.sites.values()) / elements)
        seen |= {choice.format for choice in plan.sites.values()}
        assert not any(choice.scaled for choice in plan.sites.values())
    assert None in seen
    assert parse_format("nf4-g64-dq") in seen


def test_the_picture_crosses_out_what_is_dominated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("matplotlib").use("Agg")
    import natprec
    from natprec.pipeline import plotting

    made, file = made_up(3), table(tmp_path, 3)
    rungs = ladder(made, minimize="decode", costs=file)
    rungs = [replace(rung, dominated=number % 3 == 0) for number, rung in enumerate(rungs)]
    monkeypatch.setattr(plotting, "ladder", lambda *given, **options: rungs)
    axes = natprec.plot(made, minimize="decode", costs=file)
    drawn: dict[str, list[tuple[float, float]]] = {}
    for marks in axes.collections:
        drawn.setdefault(str(marks.get_label()), []).extend(map(tuple, marks.get_offsets().tolist()))
    for minimize in ("decode", "bytes"):
        for beaten, label in ((False, f"least {minimize}"), (True, f"least {minimize}, dominated")):
            own = [
                (rung.cost, rung.kl_predicted)
                for rung in rungs
                if (rung.minimize, rung.dominated) == (minimize, beaten)
            ]
            assert np.allclose(sorted(drawn[label]), sorted(own))
    crosses = [at for label, own in drawn.items() if label.startswith("_") for at in own]
    assert len(crosses) == sum(rung.dominated for rung in rungs) > 0
    assert axes.get_xlabel() == "microseconds"
    monkeypatch.undo()
    roofline = natprec.plot(
        measurement([curve("s0", [1.0, 0.1], FORMATS[-2:], shape=(256, 256))]), minimize="decode", gpu="h100"
    )
    assert roofline.get_xlabel() == "ROOFLINE: microseconds"
