"""Blocks as few calls compute what their plain forwards do: a token after others, and many at once."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from natprec import native
from natprec.formats import CHANNEL, Format, engine_profile, integer
from natprec.measurement.subject import Subject
from natprec.models.weight_sites import site_weight
from natprec.quantizers import quantize
from natprec.runtime.load import load
from tests.arrange import subject, write_checkpoint
from tests.runtime.families import IDS, INPUTS, error, errors, logits, mistral, qwen2, qwen3, saved
from tests.runtime.kernels.test_cpu import variant  # noqa: F401  (a fixture)

pytestmark = pytest.mark.skipif(native.library()[0] is None, reason=native.library()[1])

TIGHT = 9 * 2**-16
"""Of the largest value: the same operations in another order, for which an activation of any of nine products may round
to another int16."""


@pytest.fixture
def in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    """Attention and products of many tokens, so that bounds can be tight."""
    for place in ("natprec.runtime.kernels.linear.fast_dtype", "natprec.runtime.kernels.cpu.fast_dtype"):
        monkeypatch.setattr(place, lambda: torch.float32)


@pytest.mark.usefixtures("variant", "in_float32")
@pytest.mark.parametrize("made", [qwen2, qwen3, lambda: subject(vocab_size=512).model], ids=["qwen2", "qwen3", "llama"])
@pytest.mark.parametrize(
    "fmt",
    [integer(bits, 32, symmetric) for bits, symmetric in ((2, True), (3, False), (5, True), (8, False))],
    ids=str,
)
def test_a_token_and_many_are_what_the_plain_modules_compute(
    made: Callable[[], Any], fmt: Format, tmp_path: Path, tiny_tokenizer: Any
) -> None:
    runnable = load(saved(tmp_path / "out", made(), tiny_tokenizer, fmt))
    assert set(runnable.replaced.blocks.values()) == {""}
    assert runnable.replaced.stack == ""
    assert error(runnable) < TIGHT


@pytest.mark.usefixtures("variant", "in_float32")
def test_weights_that_are_not_quantized_and_linears_that_are_not_joined(tmp_path: Path, tiny_tokenizer: Any) -> None:
    """One format for the query, another for the value, none for the key and the gate."""
    made = Subject.in_memory(subject(vocab_size=512).model, tiny_tokenizer, "small")
    formats = {"q_proj": 4, "v_proj": 6, "up_proj": 3, "down_proj": 8}
    kept = [site for site in made.sites if site.name.rpartition(".")[2] in formats]
    folder = tmp_path / "out"
    quantized = {
        site.name: quantize(
            site_weight(made.model, site), integer(formats[site.name.rpartition(".")[2]], 32), torch.bfloat16
        )
        for site in kept
    }
    folder.mkdir()
    write_checkpoint(folder, made, quantized, engine_profile("natprec"))
    runnable = load(folder)
    assert set(runnable.replaced.blocks.values()) == {""}
    assert len(runnable.model.model.layers[0].forward.__self__.block.states) == 3
    assert error(runnable) < TIGHT


@pytest.mark.usefixtures("in_float32")
def test_int8_inputs(tmp_path: Path, tiny_tokenizer: Any) -> None:
    """Codes and sums are whole numbers, so tokens agree but for the order of a norm's or a softmax's sum, up to the
    first whose activation lies so near to a half that it rounds otherwise. That one moves it, and those that see it, by
    about a step (up to 0.011 in 120 such models; a quarter of the tokens was always within 2e-5)."""
    for fmt in (integer(8, CHANNEL), integer(4, 32)):
        folder = saved(tmp_path / fmt.name, qwen2(), tiny_tokenizer, fmt, "vllm")
        config = json.loads((folder / "config.json").read_text())
        for group in config["quantization_config"]["config_groups"].values():
            group["input_activations"] = INPUTS
        (folder / "config.json").write_text(json.dumps(config))
        runnable = load(folder)
        assert any("int8 inputs" in chosen.format for chosen in runnable.kernels.values())
        assert set(runnable.replaced.blocks.values()) == {""}
        found = errors(runnable)
        assert float(found.quantile(0.25)) < TIGHT
        assert float(found.max()) < 0.03


@pytest.mark.usefixtures("in_float32")
def test_a_sliding_window_is_kept(tmp_path: Path, tiny_tokenizer: Any) -> None:
    """24 tokens through a window of 8: whatever is replaced, tokens see the last 8."""
    runnable = load(saved(tmp_path / "out", mistral(), tiny_tokenizer, integer(5, 32)))
    assert error(runnable) < TIGHT
    changed = IDS.clone()
    changed[0, 0] += 1
    found, other = logits(runnable), logits(runnable, changed)
    assert torch.allclose(found[:, -1], other[:, -1], atol=1e-5)
    assert not torch.allclose(found[:, 3], other[:, 3], atol=1e-5)
