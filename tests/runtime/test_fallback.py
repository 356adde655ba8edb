"""What is of another structure, computes something else, or is called otherwise, runs as transformers' modules."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from natprec import native
from natprec.checkpoints.dense_reader import load_quantized
from natprec.commands.generate import explanation
from natprec.formats import integer
from natprec.runtime import blocks, stack
from natprec.runtime.blocks import LeanBlock
from natprec.runtime.kernels.block import Block, Norm
from natprec.runtime.load import Runnable, load
from tests.models.test_blocks import gemma3, gpt_neox, opt
from tests.runtime.families import IDS, gelu, granite, logits, mixtral, plain, qwen2, saved
from tests.runtime.kernels.test_cpu import variant  # noqa: F401  (a fixture)
from tests.runtime.test_load import EXACT

pytestmark = pytest.mark.skipif(native.library()[0] is None, reason=native.library()[1])


@pytest.fixture(autouse=True)
def _the_same_models() -> None:
    """Whatever ran before: how much a wrong block changes the output depends on the model's random weights."""
    torch.manual_seed(0)


@pytest.fixture
def in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    """Attention and products of many tokens, so that bounds can be tight."""
    for place in ("natprec.runtime.kernels.linear.fast_dtype", "natprec.runtime.kernels.cpu.fast_dtype"):
        monkeypatch.setattr(place, lambda: torch.float32)


@pytest.mark.parametrize(
    ("made", "cause"),
    [
        (granite, "has residual_multiplier"),
        (gelu, "the gate is GELUActivation"),
        (gemma3, "differs in post_feedforward_layernorm"),
        (mixtral, "differs in"),
        (gpt_neox, None),
        (opt, "differs in"),
    ],
    ids=["granite", "gelu", "gemma3", "mixtral", "gpt_neox", "opt"],
)
@pytest.mark.usefixtures("in_float32")
def test_other_structures_stay_plain(
    made: Callable[[], Any], cause: str | None, tmp_path: Path, tiny_tokenizer: Any
) -> None:
    """And compute what their dense weights do; norms are replaced where they are known."""
    model = made()
    folder = saved(tmp_path / "out", model, tiny_tokenizer, integer(5, 32))
    runnable = load(folder)
    for said in runnable.replaced.blocks.values():
        assert said
        assert cause is not None
        assert cause in said
    assert bool(runnable.replaced.blocks) == (cause is not None)
    assert runnable.replaced.stack
    assert bool(runnable.replaced.norms) == (made not in (gpt_neox, opt))
    expected = load_quantized(folder)(input_ids=IDS % model.config.vocab_size).logits
    found = logits(runnable, IDS % model.config.vocab_size)
    assert (found - expected).abs().max() < EXACT * expected.abs().max()


@pytest.fixture
def runnable(tmp_path: Path, tiny_tokenizer: Any, in_float32: None) -> Runnable:
    return load(saved(tmp_path / "out", qwen2(), tiny_tokenizer, integer(5, 32)))


def broken(block: Block, how: str) -> Block:
    if how == "scaling":
        return replace(block, scaling=1.05 * block.scaling)
    if how == "bias":
        bias = block.states[0].bias
        assert bias is not None
        states = type(block.states[0])(block.states[0].stored, bias * 1.02)
        return replace(block, states=(states,))
    if how == "norm":
        return replace(block, between=Norm(block.between.weight, 0.1))
    return replace(block, before=block.between, between=Norm(block.before.weight * 1.01, block.before.eps))


@pytest.mark.parametrize("how", ["scaling", "bias", "norm", "weight"])
def test_a_block_that_computes_something_else_stays_plain(
    how: str, tmp_path: Path, tiny_tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = saved(tmp_path / "out", qwen2(), tiny_tokenizer, integer(5, 32))
    read = blocks.read_block
    monkeypatch.setattr(blocks, "read_block", lambda layer: broken(read(layer), how))
    found = load(folder)
    assert all("it computes something else" in cause for cause in found.replaced.blocks.values())
    assert found.replaced.stack == "some blocks stay plain"
    assert "computes something else" in "\n".join(explanation(found))


def test_a_loop_that_gives_other_bits_stays_plain(
    tmp_path: Path, tiny_tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = saved(tmp_path / "out", qwen2(), tiny_tokenizer, integer(5, 32))
    step = stack.Stack.step
    monkeypatch.setattr(stack.Stack, "step", lambda self, ids, layers: step(self, ids, layers) * (1 + 1e-6))
    found = load(folder)
    assert set(found.replaced.blocks.values()) == {""}
    assert found.replaced.stack == "it computes something else"


def calls(runnable: Runnable, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Notes each time that few calls run, and how many tokens they are for."""
    made: list[str] = []
    for owner, name in ((LeanBlock, "step"), (LeanBlock, "_many"), (stack.Stack, "step")):
        original = getattr(owner, name)

        def noted(*args: Any, original: Any = original, said: str = f"{owner.__name__}.{name}") -> Any:
            made.append(said)
            return original(*args)

        monkeypatch.setattr(owner, name, noted)
    return made


@torch.inference_mode()
def test_calls_that_it_does_not_know_run_plain(runnable: Runnable, monkeypatch: pytest.MonkeyPatch) -> None:
    made = calls(runnable, monkeypatch)
    layers = runnable.model.config.num_hidden_layers

    def told(ids: Tensor, **kwargs: Any) -> tuple[list[str], Any]:
        made.clear()
        output = runnable(input_ids=ids, **kwargs)
        return list(made), output

    said, output = told(IDS, use_cache=True)
    assert said == ["LeanBlock._many"] * layers
    past = output.past_key_values
    assert told(IDS[:, :1], past_key_values=past, use_cache=True)[0] == ["Stack.step"]
    assert told(IDS[:, :3], past_key_values=past, use_cache=True)[0] == [], "a mask"
    assert told(IDS, attention_mask=torch.tensor([[0] * 4 + [1] * 20]))[0] == [], "padding"
    two = told(IDS.view(2, 12), use_cache=True)[1].past_key_values
    assert told(IDS.view(2, 12)[:, :1], past_key_values=two, use_cache=True)[0] == [], "two sequences"
    handle = runnable.model.model.layers[0].mlp.register_forward_hook(lambda *_: made.append("hook"))
    assert told(IDS)[0] == ["hook"] + ["LeanBlock._many"] * (layers - 1)
    assert told(IDS[:, :1], past_key_values=past, use_cache=True)[0] == ["hook"] + ["LeanBlock.step"] * (layers - 1)
    handle.remove()
    mask = torch.ones(1, past.get_seq_length() + 1, dtype=torch.long)  # as transformers' generate() gives it
    assert told(IDS[:, :1], past_key_values=past, use_cache=True, attention_mask=mask)[0] == ["LeanBlock.step"] * layers
    assert torch.allclose(told(IDS[:, :1])[1].logits, told(IDS[:, :2])[1].logits[:, :1], atol=1e-5), "no cache"
    said, output = told(IDS[:, :1], past_key_values=past, use_cache=True, output_hidden_states=True)
    assert said == [], "transformers listens to what is inside"
    assert len(output.hidden_states) == layers + 1


def test_transformers_own_search_and_other_caches(runnable: Runnable, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its generate() with beams has several sequences and reorders the cache; a static cache is of another kind."""
    options: tuple[dict[str, Any], ...] = ({}, {"num_beams": 3}, {"cache_implementation": "static"})
    search = functools.partial(runnable.model.generate, IDS, do_sample=False, max_new_tokens=12)
    made = calls(runnable, monkeypatch)
    for kwargs in options:
        made.clear()
        found = search(**kwargs)
        ran = bool(made)
        with plain(runnable):
            assert torch.equal(found, search(**kwargs)), kwargs
        assert ran == (not kwargs)


def test_it_says_what_was_replaced(runnable: Runnable) -> None:
    said = "\n".join(explanation(runnable))
    assert "2 decoder blocks run as one call for a token, first model.layers.0" in said
    assert "a token goes through all blocks in one call" in said
    assert "5 norms run as one operation" in said
