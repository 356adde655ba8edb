"""A PASS measured again by plain transformers in float32, on the tokens that were judged: the same KL.

Of every engine whose checkpoints plain transformers loads; natprec's own have zero points and packed embeddings, which
it does not. Weights alone come to six digits. Inputs and cache are rounded here by a rounding of the test's own, and a
value on the border of two codes may fall to either side on another processor: four digits.
"""

from __future__ import annotations

import importlib.util
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from natprec.evaluation import verify
from tests.conftest import tiny_model
from tests.run_command import SMALL, natprec

BOTH = ("--activations", "8", "--kv", "8")
CASES = {
    "vllm": (),
    "vllm, inputs and cache": BOTH,
    "sglang": (),
    "sglang, inputs": ("--activations", "8"),
    "transformers": (),
    "transformers, inputs and cache": BOTH,
    "llama.cpp": (),
    "bitsandbytes": ("--eps-bwd", "0.05"),
}
"""Engine, and what is rounded beside weights → options."""
GROUPS = {"bitsandbytes": ("--group-size", "64")}
"""Where they are not 32."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer: Any) -> Path:
    """A llama whose weights are large enough that rounding them shows."""
    folder = tmp_path_factory.mktemp("models") / "large-weights"
    model = tiny_model()
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                module.weight.mul_(4)
    model.to(torch.bfloat16).save_pretrained(folder)
    tiny_tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("case", CASES)
def test_plain_transformers_measures_the_same(
    case: str, folder: Path, text_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = case.partition(",")[0]
    if engine == "bitsandbytes" and importlib.util.find_spec("bitsandbytes") is None:
        pytest.skip("transformers loads such a checkpoint with bitsandbytes, which is not installed")
    judged: list[Tensor] = []
    known = verify.compared

    def noted(own: Any, quantized: Any, out: Path, samples: Any, resume: Any, advance: Any, number: int, *rest: Any):  # type: ignore[no-untyped-def]
        if number == 0:
            judged.clear()
        judged.append(samples.ids.clone())
        return known(own, quantized, out, samples, resume, advance, number, *rest)

    monkeypatch.setattr(verify, "compared", noted)
    out = tmp_path / "out"
    result = natprec(
        "quantize", "--model", folder, "--engine", engine, "--eps", 0.2, *CASES[case], "--data", text_file, *SMALL,
        *GROUPS.get(engine, ()), "--eval-tokens", 512, "--rounding", "rtn", "--transforms", "none", "--out", out,
        "--json",
    )  # fmt: skip
    assert result.code == 0, result.err
    said = json.loads(result.out)
    assert said["passed"]
    ids = torch.cat(judged)
    assert ids.numel() == said["tokens"]
    found = divergence(logits(plain(folder), ids), quantized_logits(out, ids, engine, tmp_path))
    digits = 1e-4 if "," in case else 1e-6
    assert found == pytest.approx(said["kl_mean"], rel=digits)
    assert found > 1e-5, "rounding must show"
    if "," in case:  # what else is rounded must show, too
        weights = divergence(logits(plain(folder), ids), logits(plain(weights_alone(out, tmp_path / "weights")), ids))
        assert weights != pytest.approx(said["kl_mean"], rel=3 * digits)


def plain(folder: Path, **options: Any) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, trust_remote_code=False, **options).eval()


@torch.no_grad()
def logits(model: Any, ids: Tensor, **options: Any) -> Tensor:
    return model(input_ids=ids, **options).logits.double()


def divergence(first: Tensor, second: Tensor) -> float:
    """Mean KL of all positions."""
    first, second = first.log_softmax(-1), second.log_softmax(-1)
    return float((first.exp() * (first - second)).sum(-1).mean())


def quantized_logits(out: Path, ids: Tensor, engine: str, scratch: Path) -> Tensor:
    """By plain transformers, with its own weights; inputs, keys and values as this file rounds them."""
    if engine == "llama.cpp":
        return logits(plain(out, gguf_file="model.gguf"), ids)
    if engine == "bitsandbytes":
        return logits(in_float32(plain(out)), ids)
    config = json.loads((out / "config.json").read_text())["quantization_config"]
    model = plain(weights_alone(out, scratch / "alone"))
    span = (
        127.5 if engine == "transformers" else 127.0
    )  # compressed-tensors scales to half of the range, kernels to 127
    for group in config["config_groups"].values():
        inputs = group["input_activations"]
        if inputs is not None:
            assert (inputs["num_bits"], inputs["type"], inputs["dynamic"]) == (8, "int", True)
            size = inputs["group_size"] if inputs["strategy"] == "group" else None
            for target in group["targets"]:
                model.get_submodule(target).register_forward_pre_hook(
                    lambda _, given, size=size: (by_token(given[0], span, size),)
                )
    scheme = config.get("kv_cache_scheme")
    return logits(model, ids, **({"past_key_values": rounding_cache(scheme, out, span)} if scheme else {}))


def by_token(values: Tensor, span: float, size: int | None) -> Tensor:
    """Each token, or each `size` features of one, to 8 bits, the largest magnitude to `span`."""
    groups = values.unflatten(-1, (-1, size or values.shape[-1]))
    scale = groups.abs().amax(-1, keepdim=True) / span
    return ((groups / scale).round().clamp(-128, 127) * scale).flatten(-2)


def rounding_cache(scheme: dict[str, Any], out: Path, span: float) -> Any:
    """Keys and values as they are kept: float8 with one scale for all, or 8 bits with one for each token and head."""
    from transformers import DynamicCache

    stored = load_file(out / "model.safetensors")

    def kept(values: Tensor, name: str) -> Tensor:
        if scheme["dynamic"]:
            assert (scheme["num_bits"], scheme["type"]) == (8, "int")
            return by_token(values, span, None)
        scale = stored[name].float()
        assert (scheme["num_bits"], scheme["type"], scale.numel()) == (8, "float", 1)
        return (values / scale).clamp(-448, 448).to(torch.float8_e4m3fn).float() * scale

    class Rounding(DynamicCache):
        def update(
            self, key_states: Tensor, value_states: Tensor, layer_idx: int, *rest: Any, **named: Any
        ) -> tuple[Tensor, Tensor]:
            at = f"model.layers.{layer_idx}.self_attn"
            key, value = kept(key_states, f"{at}.k_scale"), kept(value_states, f"{at}.v_scale")
            return super().update(key, value, layer_idx, *rest, **named)

    return Rounding()


def weights_alone(out: Path, copy: Path) -> Path:
    """The checkpoint as if nothing else were rounded."""
    shutil.copytree(out, copy)
    config = json.loads((copy / "config.json").read_text())
    described = config["quantization_config"]
    described.pop("kv_cache_scheme", None)
    for group in described["config_groups"].values():
        group["input_activations"] = None
    (copy / "config.json").write_text(json.dumps(config))
    return copy


def in_float32(model: Any) -> Any:
    """bitsandbytes hands weights out in the model's bfloat16 otherwise, and multiplies so on some processors."""
    for module in model.modules():
        if hasattr(module, "compute_dtype"):
            module.compute_dtype = torch.float32
            module.weight.quant_state.dtype = torch.float32
    for parameter in model.parameters():
        parameter.data = parameter.data.float() if parameter.is_floating_point() else parameter.data
    return model.train()
