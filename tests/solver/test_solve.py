"""Plans: within their budget, inverse to one another, and refused with a number where impossible."""

from __future__ import annotations

import dataclasses
import itertools
import time
from pathlib import Path

import numpy as np
import pytest

from natprec.config import MARGIN
from natprec.errors import BudgetError, InputError
from natprec.formats import CHANNEL, Format, engine_profile, integer
from natprec.measurement import Measurement
from natprec.solver import Plan, solve
from natprec.solver.allocation import natural_precision, staircase
from natprec.solver.fused_groups import groups_of
from natprec.solver.site_costs import named_bytes
from tests.arrange import curve, measurement
from tests.speed import allowed

FORMATS = tuple(integer(bits, 64) for bits in range(2, 9))


def made_up(sites: int = 8, formats: tuple[Format, ...] = FORMATS, seed: int = 0, **changes: object) -> Measurement:
    """Curves of about 4^-b with noise, of sites of several sizes; q, k and v in one fused group."""
    draw = np.random.default_rng(seed)
    curves = []
    for number in range(sites):
        rows = int(draw.integers(1, 9)) * 64
        scale = draw.lognormal() * rows / 64
        kl = [float(scale * 4.0**-fmt.bits * draw.uniform(0.7, 1.4)) for fmt in formats]
        curves.append(curve(f"s{number}", kl, formats, shape=(rows, 128), fused_group="s0" if number < 3 else None))
    return measurement(curves, **changes)


def beside(made: Measurement) -> int:
    """Bytes of a checkpoint beside its weights' own: other tensors, files, and all names."""
    return made.header.other_bytes + made.header.carried_bytes + named_bytes(made, engine_profile("vllm"))


EPSILONS = np.geomspace(4e-3, 2.0, 40)


@pytest.mark.parametrize("seed", range(5))
def test_predicted_kl_is_within_eps_and_bytes_never_rise_with_it(seed: int) -> None:
    plans = [solve(made_up(seed=seed), eps) for eps in EPSILONS]
    for eps, plan in zip(EPSILONS, plans, strict=True):
        assert plan.kl_predicted <= plan.eps_solved
        assert plan.kl_predicted == pytest.approx(sum(choice.kl for choice in plan.sites.values()))
        assert (plan.eps, plan.eps_solved) == (eps, (1 - MARGIN) * eps)
    assert all(later.stored_bytes <= earlier.stored_bytes for earlier, later in itertools.pairwise(plans))
    assert len({plan.stored_bytes for plan in plans}) > 15


def test_a_tolerance_that_only_the_widest_formats_reach_gets_them() -> None:
    made = made_up()
    widest = sum(each.kl()[-1] for each in made.curves.values())
    plan = solve(made, widest * 1.01)
    assert {choice.format for choice in plan.sites.values()} == {FORMATS[-1]}
    assert plan.eps_solved == pytest.approx(widest)
    assert plan.kl_predicted <= plan.eps_solved * (1 + 1e-12)
    with pytest.raises(BudgetError, match="smallest reachable"):
        solve(made, widest * 0.99)


def test_sites_of_a_fused_group_share_their_format() -> None:
    for eps in EPSILONS:
        sites = solve(made_up(), eps).sites
        assert sites["s0"].format == sites["s1"].format == sites["s2"].format


def test_site_scope_is_natural_precision_of_each_site() -> None:
    made = made_up()
    for eps in (0.001, 0.01, 0.1):
        plan = solve(made, eps, eps_scope="site")
        for name, each in made.curves.items():
            if each.site.fused_group != name or name == "s0":
                continue
            stored = np.array([fmt.stored_bytes(*each.site.shape) for fmt in FORMATS])
            index = natural_precision(stored, each.kl(), eps)
            assert index is not None
            assert plan.sites[name].format == FORMATS[index]
            assert plan.sites[name].natural_bits == FORMATS[index].bits
        shared = [made.curves[name].kl() for name in ("s0", "s1", "s2")]
        assert plan.sites["s0"].format == next(f for i, f in enumerate(FORMATS) if max(kl[i] for kl in shared) <= eps)
        assert all(choice.kl <= eps for choice in plan.sites.values())


def test_site_scope_with_one_site_is_model_scope() -> None:
    made = made_up(sites=4)
    one = Measurement(made.header, {"s3": made.curves["s3"]})
    for eps in (0.003, 0.03, 0.3):
        assert solve(one, eps, margin=0.0).sites["s3"].format == solve(one, eps, eps_scope="site").sites["s3"].format


def test_a_size_is_the_inverse_of_a_tolerance() -> None:
    """At each step of the staircase; between steps both are rounded to it in their own favour."""
    made = made_up()
    decisions = [group.decision for group in groups_of(made, engine_profile("vllm"), "rtn", "16", None)]
    stairs = staircase(decisions)
    weights = sum(decision.elements for decision in decisions)
    assert len(stairs.kl) > 20
    for kl, stored in zip(stairs.kl, stairs.stored, strict=True):
        plans = [
            solve(made, 1.0, eps_solved=float(kl) * (1 + 1e-12)),
            solve(made, bits=8 * stored / weights),
            solve(made, max_size=stored + beside(made)),
        ]
        assert plans[0].sites.keys() == plans[1].sites.keys()
        for plan in plans:
            assert plan.stored_bytes == stored + beside(made)
            assert plan.kl_predicted == pytest.approx(kl, rel=1e-9)
            assert [c.format for c in plan.sites.values()] == [c.format for c in plans[0].sites.values()]


def test_bits_and_size_are_kept_and_nothing_is_left_over() -> None:
    made = made_up()
    for bits in np.linspace(2.3, 8.25, 30):
        plan = solve(made, bits=float(bits))
        assert plan.bits_per_weight <= bits
        assert 8 * (plan.stored_bytes - beside(made)) / sum(c.elements for c in plan.sites.values()) <= bits
        assert plan.bits_per_weight > bits - 1.0
        assert solve(made, max_size=float(plan.stored_bytes)).stored_bytes <= plan.stored_bytes
    kls = [solve(made, bits=float(bits)).kl_predicted for bits in np.linspace(2.3, 8.25, 30)]
    assert all(later <= earlier for earlier, later in itertools.pairwise(kls))


def test_bytes_are_those_of_the_formats_and_of_everything_else() -> None:
    made = made_up()
    plan = solve(made, 0.01)
    shapes = {name: each.site.shape for name, each in made.curves.items()}
    sites = sum(c.format.stored_bytes(*shapes[n]) for n, c in plan.sites.items() if c.format)
    assert plan.stored_bytes == sites + beside(made)
    assert plan.stored_bytes_reference == 2 * sum(rows * columns for rows, columns in shapes.values()) + 1500
    assert sum(plan.histogram().values()) == sum(rows * columns for rows, columns in shapes.values())


def test_the_mean_natural_precision_counts_weights_and_falls_with_eps() -> None:
    made = made_up()
    tight, loose = (solve(made, eps) for eps in (0.004, 1.0))
    assert tight.natural_bits is not None
    assert loose.natural_bits is not None
    assert tight.natural_bits > loose.natural_bits + 1
    known = [choice for choice in tight.sites.values() if choice.natural_bits is not None]
    spread_out = np.repeat([choice.natural_bits for choice in known], [choice.elements for choice in known])
    assert tight.natural_bits == pytest.approx(spread_out.mean())


def with_embedding(unquantized: float) -> Measurement:
    """vLLM keeps the embedding at 16 bits, which costs `unquantized`."""
    sites = made_up(sites=4)
    table = curve("table", [0.1] * 7, FORMATS, shape=(96, 128), role="embedding")
    table = dataclasses.replace(table, unquantized=np.full((1, 4), unquantized))
    return Measurement(sites.header, {"table": table, **sites.curves})


def test_sites_that_the_engine_keeps_at_16_bits_count() -> None:
    free, costly = solve(with_embedding(0.0), 0.01), solve(with_embedding(0.006), 0.01)
    assert free.sites["table"].format is None
    assert free.sites["table"].stored_bytes == 2 * 96 * 128
    assert free.histogram()[16] == 96 * 128
    assert costly.stored_bytes > free.stored_bytes  # less is left for the others
    assert costly.kl_predicted <= 0.01
    with pytest.raises(BudgetError, match=r"the smallest reachable is 0\.0"):
        solve(with_embedding(0.006), 0.005)


def test_a_site_that_no_token_reached_takes_the_widest_format() -> None:
    made = made_up(sites=5)
    dead = dataclasses.replace(made.curves["s4"], forward=np.zeros((1, 4, 7)), energy=np.zeros(4))
    plan = solve(Measurement(made.header, {**made.curves, "s4": dead}), 0.5)
    assert plan.sites["s4"].format == FORMATS[-1]
    assert plan.sites["s3"].format != FORMATS[-1]


def test_a_site_costs_what_it_costs_on_its_worst_text() -> None:
    """With two kinds of text, the plan is the one for the larger of both curves, site by site."""
    made = made_up()
    both, worst = {}, {}
    for number, (name, each) in enumerate(made.curves.items()):
        other = each.forward * (0.5 if number % 2 else 3.0)
        both[name] = dataclasses.replace(
            each, forward=np.concatenate([each.forward, other]), unquantized=np.zeros((2, 4)), energy=np.ones(8)
        )
        worst[name] = dataclasses.replace(each, forward=np.maximum(each.forward, other))
    for eps in (0.02, 0.2):
        found = solve(Measurement(dataclasses.replace(made.header, parts=2), both), eps)
        assert found.sites == solve(Measurement(made.header, worst), eps).sites
        assert found.kl_predicted <= eps
        assert found.kl_predicted_ci95 == pytest.approx((found.kl_predicted,) * 2)


def test_twenty_solves_of_200_sites_take_less_than_a_second() -> None:
    formats = tuple(integer(bits, group) for bits in range(2, 9) for group in (32, 64, CHANNEL))
    assert len(formats) == 21
    made = made_up(sites=200, formats=formats)
    seconds = []
    for _ in range(3):  # the machine may be doing other things
        start = time.process_time()
        for eps in np.geomspace(0.05, 5, 10):
            solve(made, float(eps))
        for bits in np.linspace(2.5, 8, 10):
            solve(made, bits=float(bits))
        seconds.append(time.process_time() - start)
    assert min(seconds) < allowed(1)


@pytest.mark.parametrize("value", [0.0, -0.1, float("nan"), float("inf")])
def test_meaningless_numbers_are_refused(value: float) -> None:
    with pytest.raises(InputError, match=rf"eps {value}: a tolerance is a positive number"):
        solve(made_up(), value)
    for name in ("bits", "max_size"):
        with pytest.raises(InputError, match=rf"{name.replace('_', '-')} {value}: give a positive number"):
            solve(made_up(), **{name: value})


def test_nothing_to_solve_for() -> None:
    with pytest.raises(InputError, match=r"give --eps .*, --bits or --max-size"):
        solve(made_up())


def test_unreachable_tolerance_says_the_smallest() -> None:
    made = made_up()
    smallest = sum(float(each.kl().min()) for each in made.curves.values())
    with pytest.raises(BudgetError, match=rf"eps 1e-06 .* smallest reachable is {smallest:.3g} .*raise --eps"):
        solve(made, 1e-6)
    assert solve(made, smallest * 1.05).kl_predicted <= smallest * 1.05
    with pytest.raises(BudgetError, match="at every site: the smallest reachable"):
        solve(made, 1e-6, eps_scope="site")


def test_unreachable_size_says_the_cheapest() -> None:
    made = made_up()
    with pytest.raises(BudgetError, match=r"budget 2\.10 bits/weight is below the cheapest plan, 2\.25; raise --bits"):
        solve(made, bits=2.1)
    cheapest = solve(made, bits=2.25).stored_bytes
    assert set(solve(made, bits=2.25).histogram()) == {2}
    with pytest.raises(BudgetError, match=rf"max-size 2000 bytes is below the cheapest plan, {cheapest} bytes"):
        solve(made, max_size=2000)
    assert solve(made, max_size=cheapest).stored_bytes == cheapest


def test_engine_without_the_measured_formats() -> None:
    with pytest.raises(BudgetError, match="measure with --engine sglang"):
        solve(made_up(formats=FORMATS[:2]), 0.1, engine="sglang")
    with pytest.raises(InputError, match="did you mean 'vllm'"):
        solve(made_up(), 0.1, engine="vlm")
    plan = solve(made_up(), 0.1, engine="sglang")
    assert {choice.format.bits for choice in plan.sites.values() if choice.format} <= {4, 8}
    assert all(engine_profile("sglang").runs("linear", c.format) for c in plan.sites.values() if c.format)


def test_a_size_and_a_tolerance_both_hold_or_are_refused() -> None:
    made = made_up()
    for eps in EPSILONS:
        needed = solve(made, eps, margin=0.1).bits_per_weight
        plan = solve(made, eps, bits=needed + 0.3, margin=0.1)
        assert plan.kl_predicted <= 0.9 * eps
        assert plan.bits_per_weight <= needed + 0.3
        assert (plan.eps, plan.margin) == (eps, 0.1)
    with pytest.raises(BudgetError, match="do not go together") as refused:
        solve(made, 0.01, bits=4.25)
    enough = float(str(refused.value).split("--eps ")[1].split(",")[0])
    assert solve(made, 1.01 * enough, bits=4.25).bits_per_weight <= 4.25, "the eps that the message names"
    site = solve(made, bits=6.0)
    worst = max(choice.kl for choice in site.sites.values())
    unquantized = solve(made, 1.01 * worst, bits=6.0, eps_scope="site")
    assert [choice.format for choice in unquantized.sites.values()] == [choice.format for choice in site.sites.values()]
    with pytest.raises(BudgetError, match="do not go together"):
        solve(made, 0.5 * worst, bits=6.0, eps_scope="site")


def test_what_stays_at_16_bits_counts_where_both_are_asked_for() -> None:
    """A table that costs 0.02 by its storage: the eps that bears the rest alone is refused, that of all is not."""
    made = with_embedding(0.02)
    plan = solve(made, bits=5.0)
    rest = plan.kl_predicted - 0.02
    assert rest > 0.001
    with pytest.raises(BudgetError, match=rf"predicted to cost {plan.kl_predicted:.3g}"):
        solve(made, rest + 0.01, bits=5.0, margin=0.0)
    assert solve(made, plan.kl_predicted * (1 + 1e-9), bits=5.0, margin=0.0).sites == plan.sites


def test_the_smallest_tolerance_that_is_in_reach_is_reached() -> None:
    made = with_embedding(0.02)
    finest = solve(made, bits=16.0)
    assert solve(made, finest.kl_predicted, margin=0.3).kl_predicted == pytest.approx(finest.kl_predicted)
    both = solve(made, 1.02 * finest.kl_predicted, bits=16.0, margin=0.3)
    assert both.kl_predicted == pytest.approx(finest.kl_predicted), "no size leaves room for a margin there"


def test_more_margin_is_a_tighter_plan() -> None:
    plans = [solve(made_up(), 0.05, margin=margin) for margin in (0.0, 0.3, 0.6)]
    assert [plan.eps_solved for plan in plans] == [pytest.approx(0.05 * (1 - margin)) for margin in (0.0, 0.3, 0.6)]
    assert plans[0].stored_bytes < plans[1].stored_bytes < plans[2].stored_bytes
    for margin in (-0.1, 1.0, float("nan")):
        with pytest.raises(InputError, match="margin"):
            solve(made_up(), 0.05, margin=margin)


def test_plan_file_round_trips(tmp_path: Path) -> None:
    plan = solve(with_embedding(0.001), 0.01)
    plan.save(tmp_path / "plan.json")
    assert Plan.load(tmp_path / "plan.json") == plan
    (tmp_path / "plan.json").write_text("{}")
    with pytest.raises(InputError, match=r"is no plan; write it with natprec solve"):
        Plan.load(tmp_path / "plan.json")
    with pytest.raises(InputError, match="does not exist; write it with natprec solve"):
        Plan.load(tmp_path / "none.json")
    with pytest.raises(InputError, match=r"'made-up' .*measure this model"):
        plan.refuse_other_model("f" * 16, "other")


def test_roundings_that_a_measurement_serves() -> None:
    made = made_up(rounding="gptq")
    plans = {rounding: solve(made, 0.1, rounding=rounding) for rounding in ("gptq", "yaqa", "learned")}
    assert plans["yaqa"].rounding == "yaqa"
    assert plans["learned"].kl_predicted == plans["yaqa"].kl_predicted == plans["gptq"].kl_predicted
    with pytest.raises(InputError, match="unknown rounding 'yapa'; did you mean 'yaqa'"):
        solve(made, 0.1, rounding="yapa")
    with pytest.raises(InputError, match="rounding 'yaqa' was not measured; measure with --rounding yaqa"):
        solve(made_up(rounding="rtn"), 0.1, rounding="yaqa")
