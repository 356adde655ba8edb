"""The forecast for several processes: computed from one, by the formulas of docs/large-models.md."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from natprec.pipeline.shared_estimate import seconds_shared, sent_rounding
from tests.arrange import subject
from tests.run_command import SMALL, natprec


def test_each_process_holds_and_does_less(tiny_folder: Path, text_file: Path) -> None:
    result = natprec(
        "quantize", "--model", tiny_folder, "--eps", "0.05", "--data", text_file, *SMALL, "--tokens", "16384",
        "--dry-run", "--json",
    )  # fmt: skip
    assert result.code == 0, result.err
    rows = json.loads(result.out)["shared"]
    assert [row["processes"] for row in rows] == [1, 2, 4, 8]
    assert rows[0]["sent_bytes"] == 0
    assert all(row["sent_bytes"] > 0 for row in rows[1:])
    for name in ("memory_bytes", "seconds"):
        assert [row[name] for row in rows] == sorted((row[name] for row in rows), reverse=True)


def test_text_is_written_by_one() -> None:
    assert seconds_shared({"text": 10.0, "measure": 8.0, "round": 4.0}, 4) == 13.0


@pytest.mark.parametrize("processes", [1, 2, 8])
def test_bytes_of_rounding(processes: int) -> None:
    """Of two blocks of 64 channels: moments of 4 fused groups, and codes with their scales; the pilot is one block."""
    made = subject()
    others = (processes - 1) / processes
    weights = sum(site.elements for site in made.sites if site.gptq)
    groups = {site.fused_group: site.shape[1] for site in made.sites if site.gptq}
    expected = others * (8 * sum(columns**2 for columns in groups.values()) + 1.125 * weights)
    assert sent_rounding(made, "gptq", processes) == round(expected)
    assert sent_rounding(made, "rtn", processes) == 0
    apart = subject(tie_word_embeddings=False)
    embedding = [site for site in apart.sites if site.looked_up]
    more = others * (8 * embedding[0].shape[1] ** 2 + 1.125 * embedding[0].elements)
    with_it, without = (sent_rounding(apart, "gptq", processes, some) for some in (embedding, []))
    assert with_it - without == pytest.approx(more, abs=1)
    block = [site for site in made.sites if site.gptq and ".layers.0." in site.name]
    inside = sum(site.elements for site in block)
    moments = 8 * sum({site.fused_group: site.shape[1] ** 2 for site in block}.values())
    pilot = 2 * (moments + 1.125 * inside) + 100 * 8 * inside
    assert sent_rounding(made, "learned", processes) == round(expected + others * (100 * 8 * 2 * inside + pilot))
