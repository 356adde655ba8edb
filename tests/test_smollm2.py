"""The main job on a real model: SmolLM2-135M-Instruct, dequantized from Q4_1, and the central claim in figures.

One sweep predicts the KL of the whole plan. With 4,096 tokens to measure on (half of them the model's own) and as many
to judge, prediction and measurement agree within 15 %. The run is kept under pytest's cache, by what it depends on.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import pytest
import torch

import natprec
from natprec.checkpoints.dense_reader import load_quantized
from natprec.config import QuantizeConfig
from natprec.evaluation.verification import Verification
from natprec.pipeline import quantize as pipeline
from natprec.solver import Plan

WIKITEXT = Path(__file__).parents[2] / "shared" / "data" / "wikitext-2"
EPS = 0.1
TOKENS = 4096

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def quantized(smollm2: str, pytestconfig: pytest.Config) -> Path:
    """The output folder of `quantize`; on the model's own text where WikiText-2 does not lie beside the repository."""
    texts = (str(WIKITEXT / "valid.txt"), str(WIKITEXT / "test.raw.txt")) if WIKITEXT.is_dir() else (None, None)
    sources = sorted(Path(natprec.__file__).parent.rglob("*.[pch]*"))
    digest = hashlib.sha256(json.dumps([texts[0] is None, EPS, TOKENS, torch.__version__]).encode())
    for file in sources:
        if file.suffix in (".py", ".c", ".h"):
            digest.update(file.read_bytes())
    kept = pytestconfig.cache.mkdir("smollm2")  # type: ignore[union-attr]
    out = kept / digest.hexdigest()[:16]
    if not (out / "verification.json").is_file():
        shutil.rmtree(kept)  # runs of older code
        request = QuantizeConfig(smollm2, eps=EPS, data=texts[0], eval_data=texts[1], tokens=TOKENS, eval_tokens=TOKENS)
        pipeline.quantize(request, out)
    return out


def test_prediction_and_measurement_agree(quantized: Path) -> None:
    plan, verification = Plan.load(quantized / "plan.json"), Verification.load(quantized / "verification.json")
    assert sum(text.tokens for text in verification.texts) == TOKENS
    # without WikiText two kinds of text are measured on, and each site is charged what it costs on the worse of them
    least = 0.85 if WIKITEXT.is_dir() else 0.7
    assert least <= verification.kl_mean / plan.kl_predicted <= 1.15
    assert verification.passed
    assert plan.eps_solved is not None
    assert 0.9 <= plan.kl_predicted / plan.eps_solved <= 1


def test_the_plan_mixes_widths_and_weighs_what_it_forecast(quantized: Path) -> None:
    plan, verification = Plan.load(quantized / "plan.json"), Verification.load(quantized / "verification.json")
    assert abs(verification.stored_bytes / plan.stored_bytes - 1) <= 0.01
    assert len({choice.format.bits for choice in plan.sites.values() if choice.format}) >= 3


def test_the_checkpoint_loads(quantized: Path) -> None:
    model = load_quantized(quantized)
    with torch.no_grad():
        logits = model(input_ids=torch.arange(8)[None]).logits
    assert torch.isfinite(logits).all()
