"""A seed outside 0 … 2^63 - 1 is refused wherever one is taken, and the largest works."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import natprec
from natprec.data.windows import load_tokens
from natprec.distortions.base import for_each
from natprec.errors import InputError
from natprec.runtime import generate
from natprec.utils.seeds import LIMIT, check_seed, derived
from tests.arrange import subject, tokens
from tests.conftest import tiny_model
from tests.run_command import natprec as command

WRONG: tuple[Any, ...] = (-1, LIMIT, 2**64, 1.5, "3", None)


@pytest.mark.parametrize("seed", WRONG)
def test_functions_refuse_it(seed: Any, tmp_path: Path) -> None:
    model = tiny_model()
    plan: Any = None
    for call in (
        lambda: natprec.QuantizeConfig("tiny", eps=1.0, seed=seed).check(),
        lambda: natprec.measure(model, None, tokens(2, 8), seed=seed),
        lambda: natprec.apply(plan, model, seed=seed),
        lambda: natprec.verify(tmp_path, model, seed=seed),
        lambda: load_tokens(None, None, sequences=1, length=8, split="held-out", seed=seed),
        lambda: generate.generate(plan, "abc", seed=seed),
        lambda: subject().rotated(seed),
        lambda: check_seed(seed),
    ):
        with pytest.raises(InputError, match=r"^seed .*: give a whole number from 0 to 9223372036854775807"):
            call()


@pytest.mark.parametrize(
    "arguments",
    [
        ("quantize", "--model", "m", "--eps", "1"),
        ("measure", "--model", "m", "--out", "x"),
        ("verify", ".", "--model", "m"),
        ("compare", "--model", "m"),
        ("inspect", "--model", "m"),
        ("generate", "m", "--prompt", "abc"),
    ],
)
@pytest.mark.parametrize("seed", ["-1", str(LIMIT)])
def test_commands_refuse_it(
    arguments: tuple[str, ...], seed: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("natprec.solver.plan.Plan.load", lambda path: _no_plan())
    result = command(*arguments, "--seed", seed)
    assert result.code == 2
    assert result.reason.startswith(f"natprec: seed {seed}: give a whole number from 0 to ")


def _no_plan() -> Any:
    from unittest.mock import Mock

    return Mock(distortion="kl", rotation=None)


def test_the_largest_seed_works() -> None:
    """Everything that is drawn from it, also for each of many sequences."""
    measurement = natprec.measure(tiny_model(), None, tokens(4, 16), group_size=32, seed=LIMIT - 1)
    assert measurement.header.seed == LIMIT - 1
    drawn = for_each(range(3), LIMIT - 1, lambda generator: torch.rand(4, generator=generator))
    assert len({tuple(row) for row in drawn.tolist()}) == 3


def test_small_seeds_are_derived_as_ever() -> None:
    assert [derived(seed, index) for seed, index in ((0, 0), (0, 7), (3, 2))] == [0, 7, 3_000_011]
