"""The staircase against all combinations, and against the closed form."""

from __future__ import annotations

import itertools

import numpy as np
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from natprec.solver.allocation import Decision, lower_hull, natural_precision, staircase, within_bytes, within_kl


def decision(name: str, kl: list[float], stored: list[int], elements: int = 100) -> Decision:
    values = np.array(kl, dtype=float)
    return Decision(name, elements, values, values, np.array(stored, dtype=float))


@st.composite
def small_decisions(draw: st.DrawFn) -> list[Decision]:
    """Up to six decisions with up to four formats; whole numbers, so that sums are exact."""
    decisions = []
    for number in range(draw(st.integers(1, 6))):
        count = draw(st.integers(1, 4))
        kl = draw(st.lists(st.integers(0, 40), min_size=count, max_size=count))
        stored = draw(st.lists(st.integers(1, 40), min_size=count, max_size=count, unique=True))
        decisions.append(decision(str(number), kl, stored))
    return decisions


def combinations(decisions: list[Decision]) -> tuple[np.ndarray, np.ndarray]:
    """KL and bytes of every combination of formats."""
    kl = [sum(choice) for choice in itertools.product(*(u.kl for u in decisions))]
    stored = [sum(choice) for choice in itertools.product(*(u.stored for u in decisions))]
    return np.array(kl), np.array(stored)


def total(decisions: list[Decision], chosen: list[int]) -> tuple[float, float]:
    return (
        sum(float(u.kl[i]) for u, i in zip(decisions, chosen, strict=True)),
        sum(float(u.stored[i]) for u, i in zip(decisions, chosen, strict=True)),
    )


@settings(max_examples=150, deadline=None)
@given(decisions=small_decisions())
def test_breakpoints_are_optimal_among_all_combinations(decisions: list[Decision]) -> None:
    stairs = staircase(decisions)
    kl, stored = combinations(decisions)
    for step in range(len(stairs.kl)):
        spent, weighs = total(decisions, stairs.choices(step))
        assert (spent, weighs) == (stairs.kl[step], stairs.stored[step])
        assert total(decisions, within_kl(decisions, stairs, spent))[1] == weighs == stored[kl <= spent].min()
        assert total(decisions, within_bytes(decisions, stairs, weighs))[0] == spent == kl[stored <= weighs].min()


@settings(max_examples=150, deadline=None)
@given(decisions=small_decisions(), fraction=st.floats(0, 1.1))
def test_other_budgets_are_within_one_step_of_the_optimum(decisions: list[Decision], fraction: float) -> None:
    stairs = staircase(decisions)
    kl, stored = combinations(decisions)
    budget = float(stairs.kl[0] + fraction * (stairs.kl[-1] - stairs.kl[0]))
    spent, weighs = total(decisions, within_kl(decisions, stairs, budget))
    steps = int((stairs.kl <= budget).sum()) - 1
    step = stairs.stored[steps] - stairs.stored[steps + 1] if steps + 1 < len(stairs.kl) else 0
    assert spent <= budget
    assert stored[kl <= budget].min() <= weighs <= stored[kl <= budget].min() + step
    size = float(stairs.stored[-1] + fraction * (stairs.stored[0] - stairs.stored[-1]))
    spent, weighs = total(decisions, within_bytes(decisions, stairs, size))
    steps = int((stairs.stored > size).sum())
    step = stairs.kl[steps] - stairs.kl[steps - 1] if steps else 0
    assert weighs <= size
    assert kl[stored <= size].min() <= spent <= kl[stored <= size].min() + step


def test_bytes_that_are_left_buy_back_what_still_fits() -> None:
    """Without the second decision's step the plan is too large, and with it there is room for the first one's again."""
    decisions = [decision("a", [0, 1], [5, 4]), decision("b", [0, 12], [12, 6])]
    stairs = staircase(decisions)
    assert list(stairs.stored) == [17, 16, 10]
    assert within_bytes(decisions, stairs, 16) == [1, 0]
    assert within_bytes(decisions, stairs, 12) == [0, 1]
    assert within_bytes(decisions, stairs, 10) == [1, 1]


@settings(max_examples=150, deadline=None)
@given(decisions=small_decisions(), budgets=st.lists(st.floats(0, 1), min_size=2, max_size=8))
def test_a_larger_budget_never_weighs_more_or_costs_more(decisions: list[Decision], budgets: list[float]) -> None:
    stairs = staircase(decisions)
    shares = np.sort(budgets)
    by_kl = [total(decisions, within_kl(decisions, stairs, b))[1] for b in stairs.kl[0] + shares * np.ptp(stairs.kl)]
    by_size = [
        total(decisions, within_bytes(decisions, stairs, b))[0]
        for b in stairs.stored[-1] + shares * np.ptp(stairs.stored)
    ]
    assert all(later <= earlier for earlier, later in itertools.pairwise(by_kl))
    assert all(later <= earlier for earlier, later in itertools.pairwise(by_size))


@settings(max_examples=100, deadline=None)
@given(decisions=small_decisions())
def test_hull_is_convex_and_below_every_format(decisions: list[Decision]) -> None:
    for each in decisions:
        hull = lower_hull(each.stored, each.kl)
        assert each.kl[hull[0]] == each.kl.min()
        assert each.stored[hull[-1]] == each.stored.min()
        stored, kl = each.stored[hull], each.kl[hull]
        assert (np.diff(stored) < 0).all()
        assert (np.diff(kl) > 0).all()
        assert (np.diff(np.diff(kl) / -np.diff(stored)) > 0).all()
        inside = each.stored <= stored[0]
        assert (np.interp(each.stored[inside], stored[::-1], kl[::-1]) <= each.kl[inside] + 1e-9).all()


@settings(max_examples=150, deadline=None)
@given(
    kl=st.lists(st.integers(0, 9), min_size=1, max_size=6),
    eps=st.integers(0, 9),
    order=st.randoms(use_true_random=False),
)
def test_natural_precision_is_the_definition(kl: list[int], eps: int, order: object) -> None:
    """min{b : every width >= b keeps eps}, also where the curve is not monotone."""
    stored = list(range(len(kl)))
    order.shuffle(stored)  # type: ignore[attr-defined]
    good = [i for i in range(len(kl)) if all(kl[j] <= eps for j in range(len(kl)) if stored[j] >= stored[i])]
    expected = min(good, key=lambda i: stored[i], default=None)
    assert natural_precision(np.array(stored), np.array(kl, dtype=float), float(eps)) == expected


BITS = np.arange(8, 0, -1)


def ideal(sizes: list[int], constants: list[float]) -> list[Decision]:
    """KL = c · n · 4^-b, in n · b / 8 bytes."""
    return [
        decision(str(v), list(c * n * 4.0**-BITS), list(n * BITS), n)
        for v, (n, c) in enumerate(zip(sizes, constants, strict=True))
    ]


@settings(max_examples=60, deadline=None)
@given(sizes=st.lists(st.integers(1, 1000), min_size=2, max_size=6), bits=st.integers(1, 7))
def test_ideal_curves_share_the_kl_per_parameter(sizes: list[int], bits: int) -> None:
    """T5: with one constant c, eps_v = E · n_v / Σ n_v is met exactly by one width for all."""
    decisions = ideal(sizes, [0.5] * len(sizes))
    budget = 0.5 * sum(sizes) * 4.0**-bits
    chosen = within_kl(decisions, staircase(decisions), budget * (1 + 1e-9))
    assert [int(BITS[i]) for i in chosen] == [bits] * len(sizes)
    for each, index in zip(decisions, chosen, strict=True):
        assert each.kl[index] / each.elements == budget / sum(sizes)
        assert natural_precision(each.stored, each.kl, budget * each.elements / sum(sizes) * (1 + 1e-9)) == index


@settings(max_examples=100, deadline=None)
@given(
    pairs=st.lists(st.tuples(st.integers(1, 1000), st.floats(0.1, 10)), min_size=2, max_size=6),
    exponent=st.floats(-6, -0.5),
)
def test_closed_form_then_the_remainder_is_the_staircase_plan(pairs: list[tuple[int, float]], exponent: float) -> None:
    """Each decision takes b*(E n_v / Σ n); what is left buys the next steps of the staircase."""
    decisions = ideal([n for n, _ in pairs], [c for _, c in pairs])
    weights = sum(n for n, _ in pairs)
    budget = weights * 4.0**exponent
    if budget < sum(float(u.kl[0]) for u in decisions):
        return
    stairs = staircase(decisions)
    shares = [natural_precision(u.stored, u.kl, budget * u.elements / weights) for u in decisions]
    chosen = [0 if index is None else index for index in shares]
    if None not in shares:
        assert total(decisions, chosen)[0] <= budget
    closed: set[int] = set()
    left = budget - total(decisions, chosen)[0]
    for number, fmt in zip(stairs.decision, stairs.format, strict=True):
        if number in closed or fmt <= chosen[number]:
            continue
        cost = float(decisions[number].kl[fmt] - decisions[number].kl[chosen[number]])
        assume(abs(cost - left) > 1e-9 * budget)  # a tie is decided by rounding
        if cost > left:
            closed.add(int(number))
        else:
            chosen[number], left = int(fmt), left - cost
    assert chosen == within_kl(decisions, stairs, budget)
