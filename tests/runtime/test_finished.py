"""Gated products and residuals finished inside kernels: what the plain forwards compute, or the plain forwards.

On the kernels of CUDA, whose operations compute their specification here; tests/runtime/test_cuda.py runs the kernels
themselves in Triton's interpreter.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from natprec.formats import CHANNEL, Format, engine_profile, integer
from natprec.measurement.subject import Subject
from natprec.models.weight_sites import site_weight
from natprec.quantizers import quantize
from natprec.runtime.added import AddingBlock
from natprec.runtime.kernels.dispatch import KERNELS
from natprec.runtime.kernels.epilogue import Ending
from natprec.runtime.kernels.joined import Joined
from natprec.runtime.kernels.linear import QuantizedWeight
from natprec.runtime.load import Runnable, load
from tests.arrange import subject, write_checkpoint
from tests.runtime.families import SIZES, error, gelu, granite, mistral, mixtral, plain, qwen2, qwen3, saved

pytestmark = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="they refuse without triton")

HALVES = 2e-3
"""Largest difference of a logit over the largest: an activation of float16 may be another by its last bit, 2^-11."""


def llama(**changes: Any) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    return LlamaForCausalLM(LlamaConfig(**SIZES, num_key_value_heads=2, **changes))


def gemma() -> Any:
    """Norms whose weight is stored less one, GELU by its tanh form."""
    from transformers import GemmaConfig, GemmaForCausalLM

    return GemmaForCausalLM(GemmaConfig(**SIZES, num_key_value_heads=1, head_dim=16))


def gemma2() -> Any:
    """Norms after attention and after the gated product: only the latter is a part that is known."""
    from transformers import Gemma2Config, Gemma2ForCausalLM

    return Gemma2ForCausalLM(Gemma2Config(**SIZES, num_key_value_heads=1, head_dim=16, sliding_window=8))


def phi3() -> Any:
    """Gate and up are one Linear."""
    from transformers import Phi3Config, Phi3ForCausalLM

    return Phi3ForCausalLM(Phi3Config(**SIZES, num_key_value_heads=2, pad_token_id=0))


def on_cuda_kernels(folder: Path, model: Any, tokenizer: Any, fmt: Format = integer(4, 32)) -> Runnable:  # noqa: B008
    return load(saved(folder, model, tokenizer, fmt), kernels=KERNELS["cuda"])


@pytest.fixture
def endings(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of what followed each product by a kernel of CUDA."""
    found: list[str] = []
    finished = QuantizedWeight.finished

    def noted(self: QuantizedWeight, scaled: Any, ending: Ending, dtype: torch.dtype) -> torch.Tensor:
        found.append(ending.epilogue.name)
        return finished(self, scaled, ending, dtype)

    monkeypatch.setattr(QuantizedWeight, "finished", noted)
    return found


ELSE = "it computes something else (0.0"
EVERYWHERE = [qwen2, qwen3, mistral, gelu, gemma, lambda: llama(attention_bias=True, mlp_bias=True)]


@pytest.mark.parametrize("made", EVERYWHERE, ids=["qwen2", "qwen3", "mistral", "gelu", "gemma", "llama with biases"])
def test_blocks_are_finished_inside_their_kernels(
    made: Callable[[], Any], tmp_path: Path, tiny_tokenizer: Any, endings: list[str]
) -> None:
    model = made()
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter)
    runnable = on_cuda_kernels(tmp_path / "out", model, tiny_tokenizer)
    replaced = runnable.replaced
    assert replaced.gated == {f"model.layers.{index}.mlp": "" for index in range(2)}
    assert replaced.residuals == {f"model.layers.{index}": "" for index in range(2)}
    assert replaced.norms == sum("norm" in name.rpartition(".")[2] for name, _ in model.named_modules())
    endings.clear()
    runnable(input_ids=torch.tensor([[1, 2, 3]]))
    gate = {"gelu": "gelu", "gemma": "gelu_tanh"}.get(getattr(made, "__name__", ""), "silu")
    assert endings == [*(2 * ["none", "residual", "none", f"{gate}+gated", "residual"]), "none"]
    assert 0 < error(runnable) < HALVES


@pytest.mark.parametrize(
    ("made", "gated", "residuals", "norms"),
    [
        (gemma2, {""}, {"Gemma2DecoderLayer differs in post_feedforward_layernorm, pre_feedforward_layernorm"}, 9),
        (granite, {""}, {"GraniteDecoderLayer has residual_multiplier"}, 5),
        (phi3, set(), {"Phi3DecoderLayer differs in resid_attn_dropout, resid_mlp_dropout"}, 5),
        (mixtral, set(), {""}, 5),
    ],
)
def test_of_other_blocks_what_is_known(
    made: Callable[[], Any],
    gated: set[str],
    residuals: set[str],
    norms: int,
    tmp_path: Path,
    tiny_tokenizer: Any,
) -> None:
    runnable = on_cuda_kernels(tmp_path / "out", made(), tiny_tokenizer)
    replaced = runnable.replaced
    assert set(replaced.gated.values()) == gated
    assert set(replaced.residuals.values()) == residuals
    assert replaced.norms == norms
    assert error(runnable) < HALVES


def test_formats_that_differ_and_weights_that_are_not_quantized(
    tmp_path: Path, tiny_tokenizer: Any, endings: list[str]
) -> None:
    """Gate and up of two widths share their scaled input; attention ends with 16 bits, and its residual with it."""
    made = Subject.in_memory(subject(vocab_size=512).model, tiny_tokenizer, "small")
    formats = {"gate_proj": 4, "up_proj": 3, "down_proj": 8}
    quantized = {
        site.name: quantize(site_weight(made.model, site), integer(formats[leaf], 32), torch.bfloat16)
        for site in made.sites
        if (leaf := site.name.rpartition(".")[2]) in formats
    }
    (tmp_path / "out").mkdir()
    write_checkpoint(tmp_path / "out", made, quantized, engine_profile("natprec"))
    runnable = load(tmp_path / "out", kernels=KERNELS["cuda"])
    assert set(runnable.replaced.residuals.values()) == {""}
    scaled: list[int] = []
    kernel = runnable.model.model.layers[0].mlp.gate_proj.stored.kernel
    own = type(kernel).scaled
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(kernel), "scaled", lambda self, x: scaled.append(len(x)) or own(self, x))
        endings.clear()
        runnable(input_ids=torch.tensor([[1, 2, 3]]))
    assert endings == 2 * ["none", "silu+gated", "residual"]
    assert scaled == 2 * [3, 3]
    assert error(runnable) < HALVES


@pytest.mark.parametrize("fmt", [integer(8, CHANNEL), integer(4, 32)], ids=str)
def test_inputs_of_int8_and_inputs_of_floats_are_not_shared(fmt: Format, tmp_path: Path, tiny_tokenizer: Any) -> None:
    runnable = on_cuda_kernels(tmp_path / "out", llama(), tiny_tokenizer, fmt)
    mlp = runnable.model.model.layers[0].mlp
    gate, up = mlp.gate_proj.stored, mlp.up_proj.stored
    assert gate.shares_inputs(up)
    up.kernel = next(kernel for kernel in KERNELS["cuda"] if kernel.name == "triton-int8")
    assert not gate.shares_inputs(up)
    assert not up.shares_inputs(gate)


def test_what_a_few_tokens_may_not_show_stays_plain(
    tmp_path: Path, tiny_tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A limit of what is multiplied: by an attribute that nobody knows, and by its effect on large tokens."""
    from transformers.models.llama import modeling_llama as llama_classes

    def limited(self: Any, x: torch.Tensor) -> torch.Tensor:
        gate = self.act_fn(self.gate_proj(x)).clamp(max=5)
        return self.down_proj(gate * self.up_proj(x))

    folder = saved(tmp_path / "out", llama(), tiny_tokenizer, integer(4, 32))
    monkeypatch.setattr(llama_classes.LlamaMLP, "forward", limited)
    runnable = load(folder, kernels=KERNELS["cuda"])
    assert all(cause.startswith("it computes something else") for cause in runnable.replaced.gated.values())
    made = llama_classes.LlamaMLP.__init__
    monkeypatch.setattr(
        llama_classes.LlamaMLP, "__init__", lambda self, config: (made(self, config), setattr(self, "limit", 5))[0]
    )
    runnable = load(folder, kernels=KERNELS["cuda"])
    assert set(runnable.replaced.gated.values()) == {"LlamaMLP has limit"}


def test_what_computes_something_else_stays_plain(
    tmp_path: Path, tiny_tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Classes of the same parts and attributes, whose forwards have a factor."""
    from transformers.models.llama import modeling_llama as llama_classes

    folder = saved(tmp_path / "out", llama(), tiny_tokenizer, integer(4, 32))
    gated = llama_classes.LlamaMLP.forward
    block = llama_classes.LlamaDecoderLayer.forward
    with monkeypatch.context() as patch:
        patch.setattr(llama_classes.LlamaMLP, "forward", lambda self, x: 1.01 * gated(self, x))
        runnable = load(folder, kernels=KERNELS["cuda"])
        assert all(cause.startswith(ELSE) for cause in runnable.replaced.gated.values())
        assert set(runnable.replaced.residuals.values()) == {""}, "attention's can be added all the same"
        assert error(runnable) < HALVES
    with monkeypatch.context() as patch:
        patch.setattr(
            llama_classes.LlamaDecoderLayer, "forward", lambda self, x, **more: x + 1.01 * (block(self, x, **more) - x)
        )
        runnable = load(folder, kernels=KERNELS["cuda"])
        assert set(runnable.replaced.gated.values()) == {""}
        assert all(cause.startswith(ELSE) for cause in runnable.replaced.residuals.values())
        assert "forward" not in vars(runnable.model.model.layers[0].self_attn.o_proj)
        assert error(runnable) < HALVES


@torch.inference_mode()
def test_whoever_looks_inside_sees_the_plain_modules(tmp_path: Path, tiny_tokenizer: Any) -> None:
    """A hook on the gate is given the gate's own output; hidden states and attentions can be asked for."""
    runnable = on_cuda_kernels(tmp_path / "out", llama(), tiny_tokenizer)
    ids = torch.tensor([[1, 2, 3, 4]])
    expected = runnable(input_ids=ids).logits
    seen: list[torch.Tensor] = []
    gate = runnable.model.model.layers[0].mlp.gate_proj
    handle = gate.register_forward_hook(lambda module, args, output: seen.append(output))
    hooked = runnable(input_ids=ids).logits
    handle.remove()
    with plain(runnable):
        handle = gate.register_forward_hook(lambda module, args, output: seen.append(output))
        runnable(input_ids=ids)
        handle.remove()
    assert (hooked - expected).abs().max() < HALVES * expected.abs().max()
    assert (seen[0] - seen[1]).abs().max() <= HALVES * seen[1].abs().max()
    assert len(runnable(input_ids=ids, output_hidden_states=True).hidden_states) == 3
    assert len(seen) == 2


def test_a_residual_waits_for_one_call_only(tmp_path: Path, tiny_tokenizer: Any) -> None:
    """Attention that fails leaves nothing behind that the next call would add."""
    runnable = on_cuda_kernels(tmp_path / "out", llama(), tiny_tokenizer)
    layer = runnable.model.model.layers[0]
    block: AddingBlock = layer.forward.__self__
    with pytest.raises(TypeError):
        layer(torch.zeros(1, 2, SIZES["hidden_size"]))  # without positions
    assert block.output is not None
    assert block.output.residual is None


def test_kernels_that_finish_nothing_stay_joined(tmp_path: Path, tiny_tokenizer: Any) -> None:
    folder = saved(tmp_path / "out", llama(), tiny_tokenizer, integer(4, 32))
    runnable = load(folder, kernels=tuple(kernel for kernel in KERNELS["cuda"] if kernel.name == "dequantize"))
    assert runnable.replaced.gated == runnable.replaced.residuals == {}
    assert isinstance(runnable.model.model.layers[0].mlp.gate_proj.joined, Joined)
