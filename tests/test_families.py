"""Families of transformers from quantizing to plain transformers; `scripts/families.py` tries all that there are."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

import pytest

SCRIPTS = Path(__file__).parents[1] / "scripts"

REFUSED = {
    ("biogpt", "inputs and cache"): "BioGptConfig has no num_key_value_heads",
    ("cpmant", "inputs and cache"): "CpmAntConfig has no num_key_value_heads",
    ("ctrl", "inputs and cache"): "whose library knows attention by k_proj and v_proj",
    ("deepseek_v3", "inputs and cache"): "kv '8': heads of this model differ in size",
    ("bert", "inputs and cache"): "inputs of 'pooler.dense' would be rounded with one scale for all tokens",
}
"""What transformers' own library cannot load, or rounds otherwise than is planned; all else is right."""


@pytest.fixture(scope="module")
def script() -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(SCRIPTS))
        yield importlib.import_module("families")
        for name in ("families", "family_models", "same_bytes", "case_checks"):
            sys.modules.pop(name, None)


@pytest.mark.parametrize(
    "family", ["bert", "biogpt", "cpmant", "ctrl", "deepseek_v3", "gemma3_text", "mixtral", "qwen3"]
)  # fmt: skip
def test_right_or_refused_by_name(script: Any, family: str) -> None:
    rows = script.rows(family, script.families()[family], limit=300)
    assert [row.variant for row in rows] == list(script.VARIANTS), rows
    for row in rows:
        why = REFUSED.get((family, row.variant))
        if why is None:
            assert row.verdict == "right", row
        else:
            assert row.verdict == "refused", row
            assert why in row.says[0]


def test_what_cannot_be_built_is_said(script: Any) -> None:
    (row,) = script.rows("fuyu", "causal", limit=60)
    assert row.verdict == "not built"
    assert "million weights" in row.says[0]


def test_a_wrong_one_is_noticed(script: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    known = script.plain
    monkeypatch.setattr(script, "plain", lambda *given: (1.001 * known(*given)[0], {}))
    rows = script.rows("qwen3", "causal", limit=300)
    assert rows[0].verdict == "wrong"
    assert "plain transformers gives" in rows[0].says[0]
