"""What compressed-tensors' library, which rounds activations in plain transformers, rounds otherwise than is planned.

It takes a module for attention by its class and the names of its projections (`is_cached_attention_module`), and passes
over all others; and where tokens come to a Linear as rows of a matrix, without a dimension for sequences, it takes one
scale for all of them instead of one for each (`compute_dynamic_scales_and_zp` keeps the first two dimensions apart). It
asks the config for the number of heads and their size, and fails where a family names them otherwise or where they are
not the same in all layers (`get_num_kv_heads`, `get_head_dim`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from natprec.errors import ModelError
from natprec.models.segments import SegmentedModel
from natprec.models.weight_sites import Site
from natprec.tasks import Samples
from natprec.utils.hooks import attached


@torch.no_grad()
def refuse_rounded_otherwise(
    segmented: SegmentedModel, activations: Sequence[Site], samples: Samples, inputs: bool, cache: bool
) -> None:
    """Refuse activations of plain transformers that would not be rounded as planned.

    Args:
        samples: a few to try on.
        inputs: whether inputs of Linears are to be rounded; `cache`: keys and values.
    Raises:
        ModelError: names the first module.
    """
    from compressed_tensors.quantization.lifecycle.initialize import is_cached_attention_module

    for name in (use for site in activations if cache and site.role == "cache" for use in site.uses):
        module = segmented.model.get_submodule(name)
        if not is_cached_attention_module(module):
            raise ModelError(
                f"keys and values of {name!r} ({type(module).__name__}) would stay as they are in transformers, whose "
                "library knows attention by k_proj and v_proj; leave --kv out, or use another --engine"
            )
        own = next((each for each in ("k_scale", "v_scale") if hasattr(module, each)), None)
        if own is not None:
            raise ModelError(
                f"{name!r} ({type(module).__name__}) has something of its own that it calls {own}, as transformers' "
                "library calls the scale of its cache; leave --kv out, or use another --engine"
            )
    flat: list[str] = []
    names = {
        segmented.model.get_submodule(use): use for site in activations if site.role == "linear" for use in site.uses
    }

    def look(module: nn.Module, args: tuple[Any, ...]) -> None:
        if args[0].dim() < 3:
            flat.append(names[module])

    if inputs:
        with attached([module.register_forward_pre_hook(look) for module in names]):
            segmented.output(samples)
    if flat:
        raise ModelError(
            f"inputs of {flat[0]!r} would be rounded with one scale for all tokens in transformers, not with one for "
            "each; leave --activations out, or use another --engine"
        )
    if cache:
        _refuse_unsized_heads(segmented.model)
        _refuse_other_cache(segmented.model, samples)


def _refuse_other_cache(model: Any, samples: Samples) -> None:
    """Refuse a cache that is more than keys and values, in whose place the library puts one of its own (MiniMax)."""
    from transformers import DynamicCache

    cache = getattr(model(input_ids=samples.ids[:1], use_cache=True), "past_key_values", None)
    if cache is not None and type(cache) is not DynamicCache:
        raise ModelError(
            f"{type(model).__name__} keeps its state in a {type(cache).__name__}, and transformers rounds keys and "
            "values in a cache of its own, which has no more than these; leave --kv out, or use another --engine"
        )


def _refuse_unsized_heads(model: Any) -> None:
    """Refuse a cache whose heads the library cannot count: it asks the config, by names that not every family has."""
    from compressed_tensors.utils.helpers import get_head_dim, get_num_attn_heads, get_num_kv_heads

    asked = {"num_attention_heads": get_num_attn_heads, "num_key_value_heads": get_num_kv_heads}
    for name, ask in {**asked, "head_dim": get_head_dim}.items():
        try:
            ask(model.config)
        except Exception as error:  # a ValueError; or what a config raises whose layers differ (Gemma 4)
            which = "" if isinstance(error, ValueError) else " for all layers"
            raise ModelError(
                f"{type(model.config).__name__} has no {name}{which}, by which transformers sizes the scales of keys "
                "and values; leave --kv out, or use another --engine"
            ) from error
