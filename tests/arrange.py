"""What several tests set up alike: subjects of tiny models, tokens, made-up measurements."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from natprec.checkpoints import checkpoint_tensors
from natprec.checkpoints.compressed_tensors import quantization_config, write_settings, write_weights
from natprec.distortions import Distortion
from natprec.formats import EngineProfile, Format
from natprec.measurement import Curve, Header, Measurement
from natprec.measurement.subject import Subject
from natprec.models.disk_names import DiskNames
from natprec.models.hidden_states import HiddenStates
from natprec.models.segments import SegmentedModel
from natprec.models.weight_sites import Site
from natprec.models.weights import present_values
from natprec.quantizers import QuantizedTensor
from natprec.rounding.apply import rounded_in_order
from natprec.solver import Plan
from natprec.tasks import Samples
from tests.conftest import tiny_encoder, tiny_model

SMALL = {"hidden_size": 32, "intermediate_size": 64, "vocab_size": 96}
"""Changes to `tiny_model` that make a sweep take a fraction of a second; groups of 32 fit."""


def subject(tokenizer: Any = None, **changes: Any) -> Subject:
    """A small random llama, ready to measure; its weights are made larger, so that it predicts something."""
    model = tiny_model(**{**SMALL, **changes})
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                module.weight.mul_(4)
        if model.config.tie_word_embeddings is False:
            model.lm_head.weight.div_(2)
    return Subject.in_memory(model, tokenizer, "small")


def encoder(distortion: Distortion | None = None, **changes: Any) -> Subject:
    """A small random BERT, ready to measure."""
    return Subject.in_memory(tiny_encoder(**{"vocab_size": 96, **changes}), None, "small", distortion)


def tokens(sequences: int, length: int, vocabulary: int = 96, seed: int = 0) -> Samples:
    """Random token text."""
    draw = torch.Generator().manual_seed(seed)
    return Samples.text(torch.randint(vocabulary, (sequences, length), generator=draw))


def header(**changes: Any) -> Header:
    """A header with made-up contents."""
    values: dict[str, Any] = {
        "model": "made-up",
        "model_digest": "0" * 16,
        "data": "made-up.txt",
        "data_digest": "1" * 16,
        "sequences": 4,
        "length": 8,
        "parts": 1,
        "seed": 0,
        "estimator": "fisher",
        "rounding": "gptq",
        "engine": "vllm",
        "storage_dtype": "bfloat16",
        "other_bytes": 1000,
        "carried_bytes": 500,
    }
    return Header(**{**values, **changes})


def curve(
    name: str,
    kl: Sequence[float],
    formats: Sequence[Format],
    *,
    shape: tuple[int, int] = (64, 128),
    fused_group: str | None = None,
    pool_count: int = 4,
    role: Any = "linear",
    share: float = 1.0,
) -> Curve:
    """A site whose forward KL is `kl`, the same in each pool; GPTQ leaves a share of it."""
    site = Site(name, "weight", role, shape, (name,), fused_group or name, 0)
    forward = np.tile(np.asarray(kl, dtype=np.float64), (1, pool_count, 1))
    shares = np.full(len(formats), share)
    ones = np.ones(len(formats))
    return Curve(
        site, tuple(formats), forward, forward[0] / 2, np.ones(pool_count), shares, np.zeros((1, pool_count)), ones
    )


def measurement(curves: Sequence[Curve], **changes: Any) -> Measurement:
    """Curves under a made-up header."""
    return Measurement(header(**changes), {each.site.name: each for each in curves})


def experts(family: str = "Mixtral", std: float = 0.1, **changes: Any) -> Any:
    """A small random model of transformers whose layers have 4 experts, 2 of them for each token."""
    import transformers

    sizes = {
        "vocab_size": 96, "hidden_size": 32, "intermediate_size": 64, "moe_intermediate_size": 32,
        "num_hidden_layers": 2, "shared_expert_intermediate_size": 32, "num_attention_heads": 4,
        "num_key_value_heads": 2, "head_dim": 8,
        "num_local_experts": 4, "num_experts": 4, "num_experts_per_tok": 2, "max_position_embeddings": 512,
        "bos_token_id": 0, "eos_token_id": 1,
    }  # fmt: skip
    kind = getattr(transformers, f"{family}Config")
    known = inspect.signature(kind.__init__).parameters
    config = kind(**{name: value for name, value in {**sizes, **changes}.items() if name in known})
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = getattr(transformers, f"{family}ForCausalLM")(config).eval().requires_grad_(False)
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1 or "bias" in name:
                parameter.normal_(0, std)
    return model


def snapshot(model: nn.Module) -> dict[str, Tensor]:
    """The model's present weights, by reference."""
    return present_values(model)


def restore(model: nn.Module, weights: dict[str, Tensor]) -> None:
    """Put back what `snapshot` returned."""
    for name, parameter in model.named_parameters():
        parameter.data = weights[name]


def apply_plan(
    segmented: SegmentedModel,
    sites: list[Site],
    plan: Plan,
    text: Samples | None,
    rounding: str,
    storage_dtype: torch.dtype,
    **options: Any,
) -> dict[str, QuantizedTensor]:
    """Site name → codes; the model's weights are those of the codes afterwards."""
    states, codes = None if text is None else HiddenStates(segmented, text), dict[str, QuantizedTensor]()
    with segmented.weights.hold(segmented.model.parameters()):
        for _, found in rounded_in_order(segmented, sites, plan, states, rounding, storage_dtype, **options):
            codes |= found
        rounded = snapshot(segmented.model)
    restore(segmented.model, rounded)
    return {site.name: codes[site.name] for site in sites if site.name in codes}


def write_checkpoint(
    folder: Path,
    made: Subject,
    quantized: dict[str, QuantizedTensor],
    profile: EngineProfile,
    inputs: Mapping[str, Format] | None = None,
    shard_bytes: int = 5_000_000_000,
) -> None:
    """A compressed-tensors checkpoint of a model that is the quantized one, without any plan."""
    names, dtype = DiskNames(made.model), made.storage_dtype
    tensors = checkpoint_tensors(made.model, made.sites, quantized, profile, dtype, inputs, names=names)
    write_weights(folder, tensors, shard_bytes)
    formats = {name: value.format for name, value in quantized.items()}
    scheme = quantization_config(made.sites, formats, profile, inputs, None, names)
    write_settings(folder, made.model, made.tokenizer, scheme, dtype)
