"""Prefix, blocks and suffix are the model, for architectures that share no code."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from natprec.distortions import EmbeddingDistance, FeatureDistance, OutputKL
from natprec.models.segments import SegmentedModel
from natprec.tasks import Samples
from tests.arrange import SMALL, tokens
from tests.conftest import tiny_encoder, tiny_model

SIZES = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "vocab_size": 96}


def gpt_neox() -> Any:
    from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

    return GPTNeoXForCausalLM(GPTNeoXConfig(**SIZES, intermediate_size=64, bos_token_id=0, eos_token_id=1))


def gemma3() -> Any:
    """Layers with a sliding window, and one without: masks and rotary angles differ by layer."""
    from transformers import Gemma3ForCausalLM, Gemma3TextConfig

    config = Gemma3TextConfig(
        **SIZES,
        intermediate_size=64,
        num_key_value_heads=1,
        head_dim=16,
        sliding_window=4,
        layer_types=["sliding_attention", "full_attention", "sliding_attention"],
    )
    return Gemma3ForCausalLM(config)


def opt() -> Any:
    from transformers import OPTConfig, OPTForCausalLM

    return OPTForCausalLM(OPTConfig(**SIZES, ffn_dim=64, word_embed_proj_dim=32, max_position_embeddings=64))


def qwen2() -> Any:
    from transformers import Qwen2Config, Qwen2ForCausalLM

    return Qwen2ForCausalLM(Qwen2Config(**SIZES, intermediate_size=64, num_key_value_heads=1))


def roberta() -> Any:
    from transformers import RobertaConfig, RobertaModel

    return RobertaModel(RobertaConfig(**SIZES, intermediate_size=64, max_position_embeddings=64))


def distilbert() -> Any:
    from transformers import DistilBertConfig, DistilBertModel

    return DistilBertModel(DistilBertConfig(dim=32, n_layers=3, n_heads=2, hidden_dim=64, vocab_size=96))


def gpt2() -> Any:
    """Matrices that are stored the other way round (Conv1D); query, key and value are one."""
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(vocab_size=96, n_embd=32, n_layer=3, n_head=4, n_positions=128, bos_token_id=0, eos_token_id=1)
    return GPT2LMHeadModel(config)


def modernbert() -> Any:
    """Layers with a window and without, rotary angles of both."""
    from transformers import ModernBertConfig, ModernBertModel

    text = {f"{name}_token_id": 0 for name in ("pad", "eos", "bos", "cls", "sep")}
    return ModernBertModel(ModernBertConfig(**SIZES, **text, intermediate_size=64, local_attention=4))


def deberta() -> Any:
    """Its encoder takes two values of each layer, and gives it positions that all layers share."""
    from transformers import DebertaV2Config, DebertaV2Model

    relative = {"relative_attention": True, "pos_att_type": ["p2c", "c2p"], "position_biased_input": False}
    return DebertaV2Model(DebertaV2Config(**SIZES, **relative, intermediate_size=64, max_relative_positions=16))


FAMILIES: dict[str, Callable[[], Any]] = {
    "llama": lambda: tiny_model(**SMALL),
    "gpt-neox": gpt_neox,
    "gpt2": gpt2,
    "gemma3": gemma3,
    "opt": opt,
    "qwen2": qwen2,
    "bert": lambda: tiny_encoder(vocab_size=96, num_hidden_layers=3),
    "roberta": roberta,
    "distilbert": distilbert,
    "modernbert": modernbert,
    "deberta": deberta,
}


def built(family: str) -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = FAMILIES[family]().eval().requires_grad_(False)
        for parameter in model.parameters():  # biases and norms too: zeros would hide a lost one
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


class Output(nn.Module):
    """A causal model in miniature: `body` maps hidden states."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.embed, self.body, self.head = nn.Embedding(96, 16), body, nn.Linear(16, 96)

    def forward(self, input_ids: Tensor, use_cache: bool = False) -> SimpleNamespace:
        return SimpleNamespace(logits=self.head(self.body(self.embed(input_ids))))


class Parallel(nn.Module):
    """A list whose members do not follow one another."""

    def __init__(self) -> None:
        super().__init__()
        self.branches = nn.ModuleList(nn.Linear(16, 16) for _ in range(3))

    def forward(self, hidden: Tensor) -> Tensor:
        return sum((branch(hidden) for branch in self.branches), torch.zeros_like(hidden))


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_segments_are_the_whole_model(family: str) -> None:
    model = built(family)
    text = tokens(3, 12)
    distortion = OutputKL() if model.can_generate() else EmbeddingDistance()
    expected = distortion.output(model, text)
    segmented = SegmentedModel(model, text[:1], distortion)
    assert len(segmented.blocks) == model.config.num_hidden_layers
    hidden, contexts = segmented.prefix(text)
    for index in range(len(segmented.blocks)):
        hidden = segmented.block(index, hidden, contexts[index])
    assert torch.equal(segmented.suffix(hidden, text), expected)
    assert torch.equal(distortion.output(model, text), expected)


@torch.no_grad()
def test_gemma_masks_differ_by_layer() -> None:
    """The context of another layer would give other logits: the test above could fail."""
    segmented = SegmentedModel(built("gemma3"), tokens(1, 12))
    hidden, contexts = segmented.prefix(tokens(1, 12))
    assert not torch.equal(segmented.block(0, hidden, contexts[1]), segmented.block(0, hidden, contexts[0]))


class Block(nn.Linear):
    """Returns the hidden state and what it adds, in a tuple."""

    def forward(self, hidden: Tensor, more: Any = None) -> Any:
        added = super().forward(hidden)
        return hidden + added + (0 if more is None else more), added


class HandsOn(nn.Module):
    """Each block is given all that the one before returned."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block(16, 16) for _ in range(3))

    def forward(self, hidden: Tensor) -> Tensor:
        returned: Any = (hidden,)
        for block in self.blocks:
            returned = block(*returned)
        return returned[0]  # type: ignore[no-any-return]


class AddsUp(HandsOn):
    """What blocks return besides is no other block's, but the model's own."""

    def forward(self, hidden: Tensor) -> Tensor:
        for block in self.blocks:
            hidden, added = block(hidden)
        return hidden + added  # type: ignore[no-any-return]


class Shares(HandsOn):
    """Two blocks have one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks[2].weight = self.blocks[0].weight

    def forward(self, hidden: Tensor) -> Tensor:
        for block in self.blocks:
            hidden = block(hidden)[0]
        return hidden


@pytest.mark.parametrize(
    "body",
    [nn.Linear(16, 16), Parallel(), HandsOn(), AddsUp(), Shares()],
    ids=["no list", "parallel list", "hands on", "adds up", "shares"],
)
@torch.no_grad()
def test_a_model_without_a_chain_is_one_suffix(body: nn.Module) -> None:
    model = Output(body)
    text = tokens(2, 5)
    segmented = SegmentedModel(model, text)
    assert segmented.blocks == []
    assert segmented.segment_of("head") == segmented.segment_of("embed") == 0
    assert torch.equal(segmented.suffix(None, text), model(text.ids).logits)


def test_a_chain_is_found_whatever_its_name() -> None:
    model = Output(nn.Sequential())
    model.body.steps = nn.ModuleList(nn.Linear(16, 16) for _ in range(3))
    model.body.forward = lambda hidden: model.body.steps[2](model.body.steps[1](model.body.steps[0](hidden)))
    segmented = SegmentedModel(model, tokens(1, 5))
    assert segmented.block_names == ["body.steps.0", "body.steps.1", "body.steps.2"]


def test_segment_of_each_module() -> None:
    segmented = SegmentedModel(built("llama"), tokens(1, 5))
    assert segmented.segment_of("model.embed_tokens") == -1
    assert segmented.segment_of("model.layers.1.mlp.up_proj") == 1
    assert segmented.segment_of("lm_head") == 2


@torch.no_grad()
def test_patches_are_gone_after_an_exception() -> None:
    model = built("llama")
    text = tokens(1, 5)
    expected = model(input_ids=text.ids).logits
    segmented = SegmentedModel(model, text)
    hidden = segmented.prefix(text)[0]

    def fail(*_: Any) -> None:
        raise RuntimeError("on purpose")

    handle = model.model.norm.register_forward_pre_hook(fail)
    with pytest.raises(RuntimeError, match="on purpose"):
        segmented.suffix(hidden, text)
    handle.remove()
    assert not any("forward" in vars(block) for block in segmented.blocks)
    assert torch.equal(model(input_ids=text.ids).logits, expected)


@pytest.mark.parametrize("family", ["llama", "gpt-neox", "bert"])
@torch.no_grad()
def test_what_modules_are_given_is_shown_and_nothing_behind_the_last_of_them_is_run(family: str) -> None:
    model, text = built(family), tokens(3, 12)
    segmented = SegmentedModel(model, text[:1], OutputKL() if model.can_generate() else EmbeddingDistance())
    hidden, contexts = segmented.prefix(text)
    inside = [name for name in segmented.probe.order if name.startswith(segmented.block_names[0] + ".")]
    seen: list[str] = []
    for name in inside:
        model.get_submodule(name).register_forward_hook(lambda *_, name=name: seen.append(name))
    for stop in range(1, len(inside) + 1):
        seen.clear()
        segmented.show(0, hidden, text, contexts, inside[:stop][::-1])
        assert seen == inside[: stop - 1], "the last one's hooks see its input, before it is run"
        seen.clear()
        segmented.run(0, hidden, text, contexts)
        assert seen == inside, "and nothing stops the next run"


@torch.no_grad()
def test_a_module_that_is_called_twice_is_shown_both_times() -> None:
    model = Output(nn.Sequential())
    model.body.step = nn.Linear(16, 16)
    model.body.forward = lambda hidden: model.body.step(model.body.step(hidden))
    segmented, seen = SegmentedModel(model, tokens(1, 5)), []
    assert segmented.probe.repeated == {"body.step"}
    model.body.step.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    segmented.show(0, None, tokens(1, 5), [], ["embed", "body.step"])
    assert len(seen) == 2


class Crossed(nn.Module):
    """Two blocks that are given what became of a picture, beside the hidden state or within it."""

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(8, 8)

        def forward(self, hidden: Tensor, seen: Tensor) -> Tensor:
            return hidden + self.linear(hidden) + seen

    def __init__(self, beside: bool) -> None:
        super().__init__()
        self.embedding, self.see = nn.Embedding(16, 8), nn.Linear(3, 8)
        self.layers, self.beside = nn.ModuleList([Crossed.Block(), Crossed.Block()]), beside

    def forward(self, input_ids: Tensor, pixels: Tensor) -> Tensor:
        hidden, seen = self.embedding(input_ids), self.see(pixels)
        if not self.beside:
            hidden, seen = hidden + seen, torch.ones_like(seen)
        for layer in self.layers:
            hidden = layer(hidden, seen)
        return hidden


@pytest.mark.parametrize("beside", [False, True])
def test_blocks_that_a_picture_reaches_beside_the_hidden_state_are_one_segment(beside: bool) -> None:
    """No gradient would come back that way, and the vision tower would look free."""
    samples = Samples({"input_ids": torch.arange(6).view(1, 6), "pixels": torch.randn(1, 6, 3)}, 6)
    distortion = FeatureDistance(lambda model, samples: model(**samples.tensors))
    model = Crossed(beside).requires_grad_(False)
    segmented = SegmentedModel(model, samples, distortion)
    assert len(segmented.blocks) == (0 if beside else 2)
