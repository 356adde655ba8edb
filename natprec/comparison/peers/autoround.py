"""AutoRound (SignRound): learned rounding and clipping, 200 steps per block by default.

One uniform width, or with AutoScheme a width for each layer, chosen by AutoRound from the loss's
gradient. Asymmetric, in groups, learned on exactly the calibration tokens, and more of the text where that is given.
All else is AutoRound's default.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

PACKAGES = {"auto-round": "auto_round"}
WIDTHS = (2, 3, 4, 8)
"""Those that its format stores."""
DATA = "calibration-tokens"
DRAWN = 42
"""AutoRound's own seed, from which others are counted."""


def quantize(job: Any, model: Any, ids: Tensor) -> Any:
    """Returns AutoRound; its model then holds rounded weights, not yet packed."""
    from auto_round import AutoRound, AutoScheme
    from auto_round.schemes import QuantizationScheme

    def scheme(bits: int) -> Any:
        return QuantizationScheme(bits=bits, group_size=job.group_size, sym=False, data_type="int", act_bits=16)

    chosen = scheme(job.bits)
    if job.settings.get("search"):
        average = job.bits + (16 + job.bits) / job.group_size  # it counts scales and zero points
        count, length = ids.shape
        chosen = AutoScheme(avg_bits=average, options=[scheme(bits) for bits in WIDTHS], nsamples=count, seqlen=length)
        os.environ["AR_AUTO_SCHEME_CACHE"] = os.path.abspath("auto-scheme")  # by default one for all runs, in the home
    other = job.other_ids()
    ids = ids if other is None else torch.cat([ids, other])
    _register(ids)
    rounder = AutoRound(
        model,
        tokenizer=job.tokenizer(),
        scheme=chosen,
        dataset=DATA,
        iters=job.settings["iterations"],
        nsamples=len(ids),
        seqlen=ids.shape[1],
        device_map="cpu",
        seed=DRAWN + job.seed,
    )
    rounder.quantize()
    return rounder


def save(job: Any, done: Any, folder: Path) -> None:
    """Save in AutoRound's own format, packed as GPTQ's: AWQ's packing fails on asymmetric 4 bits in 0.15 and 0.16."""
    done.save_quantized(str(folder), format="auto_round:auto_gptq", inplace=False)


def dense(job: Any, done: Any, folder: Path) -> Iterator[tuple[str, Tensor]]:
    """The codes that packing writes times the scales that it writes: the model in memory is bfloat16."""
    codes = {}
    for name, module in done.model.named_modules():
        if getattr(module, "scale", None) is not None and getattr(module, "bits", 16) < 16:
            codes[name + ".weight"] = _reconstructed(module)
    for name, value in done.model.state_dict().items():
        owner, _, own = name.rpartition(".")
        if own in ("scale", "zp") and owner + ".weight" in codes:
            continue
        yield name, codes.get(name, value.to(job.dtype))


def _reconstructed(module: Any) -> Tensor:
    """(rows, columns) float32."""
    rows, columns = module.weight.shape

    def spread(values: Any) -> Any:
        if not isinstance(values, Tensor):
            return values
        grouped = values.float().reshape(rows, -1)
        return grouped.repeat_interleave(columns // grouped.shape[1], 1)

    scale, zero = spread(module.scale.half()), spread(module.zp)
    code = (module.weight.float() / scale + zero).round()
    return (code - zero) * scale


def _register(ids: Tensor) -> None:
    """Hand over the tokens by AutoRound's registry of data sets: AutoScheme takes nothing but a name."""
    from auto_round.calib_dataset import register_dataset
    from datasets import Dataset

    os.environ["AR_DISABLE_DATASET_SUBPROCESS"] = "1"

    def tokens(*_: Any, **__: Any) -> Any:
        rows = {"input_ids": ids.tolist(), "attention_mask": torch.ones_like(ids).tolist()}
        return Dataset.from_dict(rows)

    register_dataset(DATA)(tokens)
