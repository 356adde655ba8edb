"""In a notebook: objects show a few lines, and one call draws them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import natprec
from natprec.evaluation.verdict import JudgedText
from natprec.evaluation.verification import Verification
from natprec.formats import integer
from tests.arrange import curve, measurement

FORMATS = [integer(bits, 64) for bits in range(2, 9)]


def shown() -> list[Any]:
    found = measurement([curve(f"s{number}", np.geomspace(1, 1e-4, 7), FORMATS) for number in range(300)])
    texts = [
        JudgedText("a <text>", "0" * 16, 64, 0.04, (0.03, 0.05)),
        JudgedText("b", "1" * 16, 64, 0.06, (0.05, 0.09)),
    ]
    verification = Verification(
        0.1, True, 0.06, (0.05, 0.09), 0.1, 0.05, 10.0, 10.1, 0.9, 64, 1, 2, 4.0, 4.0, "b", "1" * 16, "rtn",
        verdict="pass", texts=texts,
    )  # fmt: skip
    return [found, found.solve(eps=0.5), verification]


@pytest.mark.parametrize("which", [0, 1, 2])
def test_objects_are_shown_in_a_line_and_as_a_small_table(which: int) -> None:
    each = shown()[which]
    assert len(repr(each)) < 400
    assert repr(each).startswith(type(each).__name__ + "(")
    html = each._repr_html_()
    assert html.count("<tr>") >= 5
    assert len(html) < 1500
    assert "<text>" not in html


def test_one_call_draws_each(tmp_path: Path) -> None:
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("Agg")
    found, plan, verification = shown()
    axes = natprec.plot(found)
    (line,) = axes.get_lines()
    assert (np.diff(line.get_xdata()) > 0).all(), "bytes rise"
    assert (np.diff(line.get_ydata()) < 0).all(), "and the KL falls"
    bars = natprec.plot(plan).patches
    assert sum(bar.get_height() for bar in bars) * 1e6 == pytest.approx(sum(plan.histogram().values()))
    axes = natprec.plot(verification)
    assert [label.get_text() for label in axes.get_yticklabels()] == ["a <text>", "b"]
    axes.figure.savefig(tmp_path / "plot.png")
    with pytest.raises(natprec.InputError, match="not dict"):
        natprec.plot({})
