"""A rounding is a line of the table and the file of its name: nothing else knows it."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

import pytest
import torch

from natprec.measurement.measure import measure
from natprec.models.weight_sites import site_weight
from natprec.quantizers import quantize
from natprec.rounding import apply_batches
from natprec.rounding.rounder import Pace, Rounder, rounder_named
from natprec.rounding.rtn import Nearest
from natprec.roundings import ROUNDINGS, Rounding
from tests.arrange import apply_plan, subject, tokens

TEXT = tokens(4, 16)


@pytest.mark.parametrize("name", ROUNDINGS)
def test_every_rounding_has_its_file(name: str) -> None:
    rounder = rounder_named(name)
    assert issubclass(rounder, Rounder)
    assert rounder.__module__ == f"natprec.rounding.{name}"
    assert (rounder.forwards > 0) == (ROUNDINGS[name].needs != "nothing")


def test_what_quick_ones_take_is_less() -> None:
    pace = Pace(tokens=8192, batch=1024, moved=1000, forward=1e-3, gathering=1e-3)
    times = {name: rounder_named(name).seconds(pace) for name in ROUNDINGS}
    slowest = max(times[name] for name, each in ROUNDINGS.items() if each.quick)
    assert all(times[name] > slowest for name, each in ROUNDINGS.items() if not each.quick)
    assert times["rtn"] == 0


def test_another_one_is_known_everywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """Half of each weight: measured, solved for, counted and rounded, by a line and a file."""

    class Half(Nearest):
        def round(self, segment: int) -> Any:
            for site in self.run.work.sites:
                if site.segment == segment:
                    weight = site_weight(self.run.segmented.model, site)
                    weight.data = weight.data / 2
            return super().round(segment)

    file = ModuleType("natprec.rounding.half")
    file.ROUNDER = Half  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, file.__name__, file)
    monkeypatch.setitem(ROUNDINGS, "half", Rounding("half", "half of it", "nothing", compensates=False, quick=True))
    made = subject(tie_word_embeddings=False)
    weights = {site.name: site_weight(made.model, site).clone() for site in made.sites}
    plan = measure(made, TEXT, engine="natprec", group_size=32, rounding="half").solve(bits=4.5)
    assert plan.rounding == "half"
    assert not any(choice.scaled for choice in plan.sites.values())
    assert apply_batches(made.segmented, "half", TEXT) == 0
    for name, value in apply_plan(made.segmented, made.sites, plan, None, "half", made.storage_dtype).items():
        assert torch.equal(value.codes, quantize(weights[name] / 2, value.format, made.storage_dtype).codes)
