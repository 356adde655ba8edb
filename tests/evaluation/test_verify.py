"""Comparison of two models, and the file that keeps its verdict."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from natprec.distortions.divergence import forward_kl
from natprec.errors import InputError
from natprec.evaluation.verification import Comparison, Verification, compare
from natprec.tasks.text import token_losses
from tests.arrange import tokens

FIELDS = {"kl_mean", "kl_ci95", "kl_p99", "perplexity_reference", "perplexity_quantized", "top1_agreement", "tokens"}


def table(seed: int, vocabulary: int = 96) -> Tensor:
    """Logits of the next token by the present one."""
    return torch.randn(vocabulary, vocabulary, generator=torch.Generator().manual_seed(seed))


def test_comparison_of_a_model_with_itself() -> None:
    one = table(0)
    summary = compare(lambda batch: one[batch.ids], lambda batch: one[batch.ids], tokens(5, 12)).summary()
    assert summary.keys() == FIELDS
    assert summary["kl_mean"] == summary["kl_p99"] == 0
    assert summary["kl_ci95"] == (0, 0)
    assert summary["top1_agreement"] == 1
    assert summary["perplexity_reference"] == summary["perplexity_quantized"]
    assert summary["tokens"] == 60


def test_summary_is_made_of_the_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the text takes several batches."""
    monkeypatch.setattr("natprec.tasks.samples.BATCH_TOKENS", 24)
    one, text = table(0), tokens(5, 12)
    two = one + 0.5 * table(1)
    calls: list[str] = []
    found = compare(lambda batch: one[batch.ids], lambda batch: two[batch.ids], text, calls.append)
    assert len(calls) == 3
    kl = forward_kl(one[text.ids], two[text.ids])
    summary = found.summary(seed=3)
    assert found.kl.shape == (5, 12)
    assert summary["kl_mean"] == pytest.approx(float(kl.mean()))
    assert summary["kl_p99"] == pytest.approx(float(np.quantile(kl.numpy(), 0.99)))
    low, high = summary["kl_ci95"]
    assert low < summary["kl_mean"] < high
    assert kl.mean(1).min() <= low < high <= kl.mean(1).max()
    assert summary["top1_agreement"] == pytest.approx(
        float((one[text.ids].argmax(-1) == two[text.ids].argmax(-1)).double().mean())
    )
    assert 0 < summary["top1_agreement"] < 1
    for name, logits in (("reference", one), ("quantized", two)):
        expected = float(token_losses(logits[text.ids], text.ids).double().mean().exp())
        assert summary[f"perplexity_{name}"] == pytest.approx(expected)
    assert found.summary(seed=3) == summary


def test_uniform_model_has_the_vocabulary_as_perplexity() -> None:
    flat = torch.zeros(96, 96)
    found = compare(lambda batch: flat[batch.ids], lambda batch: flat[batch.ids], tokens(2, 8)).summary()
    assert found["perplexity_reference"] == pytest.approx(96)


def test_no_tokens() -> None:
    with pytest.raises(InputError, match="no held-out tokens"):
        compare(table, table, tokens(0, 8))


def test_interval_resamples_sequences_not_tokens() -> None:
    """Tokens of a sequence are not independent: what counts is the spread of sequence means."""
    kl = np.repeat(np.array([[0.0], [1.0]]), 1000, 1)
    low, high = Comparison(kl, kl.size).summary()["kl_ci95"]
    assert (low, high) == (0, 1)


def test_verification_file_round_trips(tmp_path: Path) -> None:
    made = Verification(
        eps=0.01, passed=True, kl_mean=0.009, kl_ci95=(0.008, 0.01), kl_p99=0.1, kl_predicted=0.0095,
        perplexity_reference=10.0, perplexity_quantized=10.1, top1_agreement=0.98, tokens=64, stored_bytes=10,
        stored_bytes_reference=40, bits_per_weight=4.1, bits_per_weight_total=5.0, data="a.txt", data_digest="0" * 16,
        rounding="gptq", corrections=1, verdict="pass",
    )  # fmt: skip
    made.save(tmp_path / "verification.json")
    assert Verification.load(tmp_path / "verification.json") == made
    for content in ("{}", "[", '{"eps": 1}'):
        (tmp_path / "verification.json").write_text(content)
        with pytest.raises(
            InputError, match=r"is no verification; run natprec verify|cannot be read .*run natprec verify"
        ):
            Verification.load(tmp_path / "verification.json")
    with pytest.raises(InputError, match="run natprec verify"):
        Verification.load(tmp_path / "none.json")
