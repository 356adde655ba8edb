"""Mixture-of-experts models from end to end: quantized, written, and read by natprec, the runtime and transformers."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import natprec as package
from natprec.checkpoints.dense_reader import load_quantized, open_quantized
from natprec.evaluation.verify import CORRECTION, tightened
from natprec.formats import integer
from natprec.measurement.measure import measure
from natprec.measurement.subject import Subject
from natprec.models.loading import load_model
from natprec.pipeline.rounded import round_and_write
from natprec.utils.progress import Stages
from tests.arrange import curve, experts, measurement, tokens
from tests.run_command import SMALL, natprec

ROUNDED = 0.05
"""Of the largest logit: kernels round the activations of few tokens to bfloat16 (tests/runtime/test_load.py)."""


def saved(folder: Path, family: str, tokenizer: Any, std: float = 0.02) -> Path:
    experts(family, std=std, vocab_size=512).to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def quantized(tmp_path: Path, model: Path, text: Path, *options: str) -> dict[str, Any]:
    out = tmp_path / "out"
    result = natprec(
        "quantize", "--model", model, "--data", text, "--eval-data", text, "--eval-tokens", "512", *SMALL,
        "--eps", "1e-4", "--out", out, "--json", *options,
    )  # fmt: skip
    assert result.code in (0, 3), result.err
    return dict(json.loads(result.out))


def formats(folder: Path) -> dict[str, set[str]]:
    """Expert's container → formats of its weights, by plan.json."""
    found: dict[str, set[str]] = {}
    for name, site in json.loads((folder / "plan.json").read_text())["sites"].items():
        if ".experts." in name:
            own = found.setdefault(re.sub(r"\.experts\..*", "", name), set())
            own.add(f"{site['bits']} {site['group_size']} {site['symmetric']}")
    return found


@pytest.mark.parametrize("family", ["Mixtral", "Qwen3Moe"])
def test_transformers_loads_it_and_computes_the_same(
    family: str, tmp_path: Path, tiny_tokenizer: Any, text_file: Path
) -> None:
    import transformers

    model = saved(tmp_path / "m", family, tiny_tokenizer)
    result = quantized(tmp_path, model, text_file, "--engine", "transformers")
    text = tokens(2, 24, 512)
    with torch.no_grad():
        ours = load_quantized(tmp_path / "out")(input_ids=text.ids).logits
        plain = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32)
        theirs = plain(input_ids=text.ids).logits
        original = transformers.AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)(
            input_ids=text.ids
        ).logits
        running = package.load(tmp_path / "out")(input_ids=text.ids).logits
    assert float((ours - theirs).abs().max()) <= 1e-3
    assert float((ours - running).abs().max()) <= ROUNDED * float(ours.abs().max())
    assert float((ours - original).abs().max()) > 1e-3, "it is rounded"
    assert len({each for several in formats(tmp_path / "out").values() for each in several}) == 1
    assert result["kl_mean"] < 1e-3


@pytest.mark.parametrize(("engine", "alike"), [("vllm", True), ("natprec", False)])
def test_experts_of_a_layer_agree_where_the_engine_needs_it(
    engine: str, alike: bool, tmp_path: Path, tiny_tokenizer: Any, text_file: Path
) -> None:
    model = saved(tmp_path / "m", "Qwen2Moe", tiny_tokenizer, std=0.1)
    quantized(tmp_path, model, text_file, "--engine", engine, "--eps", "1e-2")
    found = formats(tmp_path / "out")
    assert found.keys() == {"model.layers.0.mlp", "model.layers.1.mlp"}
    assert all(len(several) == 1 for several in found.values()) == alike
    scheme = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]
    targets = [target for group in scheme["config_groups"].values() for target in group["targets"]]
    patterns = [target.removeprefix("re:") for target in targets if target.startswith("re:")]
    assert len(patterns) == 2 * alike
    if alike:  # vLLM asks for these three names of each layer, and takes no answer but one
        for layer in (0, 1):
            asked = [f"model.layers.{layer}.mlp.experts.0.{name}_proj" for name in ("gate", "up", "down")]
            assert len({tuple(p for p in patterns if re.match(p, name)) for name in asked}) == 1
    assert scheme["ignore"][:4] == [
        f"model.layers.{n}.mlp.{name}" for n in (0, 1) for name in ("gate", "shared_expert_gate")
    ]


def test_mixtral_is_stored_under_its_own_names(tmp_path: Path, tiny_tokenizer: Any, text_file: Path) -> None:
    from natprec.models.stored import stored_names

    quantized(tmp_path, saved(tmp_path / "m", "Mixtral", tiny_tokenizer), text_file, "--rounding", "rtn")
    names = stored_names(tmp_path / "out" / "model.safetensors")
    assert "model.layers.1.block_sparse_moe.experts.3.w1.weight_packed" in names
    assert "model.layers.0.block_sparse_moe.gate.weight" in names
    assert not any(".mlp." in name for name in names)


@pytest.mark.parametrize("family", ["Mixtral", "Qwen3Moe", "GptOss"])
def test_from_disk_as_from_memory(family: str, tmp_path: Path, tiny_tokenizer: Any) -> None:
    model = saved(tmp_path / "m", family, tiny_tokenizer)
    whole, apart = (Subject.of(load_model(str(model), on_disk=on_disk)) for on_disk in (False, True))
    assert apart.digest == whole.digest
    assert apart.sites == whole.sites
    assert apart.gauges == whole.gauges
    text = tokens(4, 48, 512)
    found, other = (measure(subject, text, group_size=32).curves for subject in (whole, apart))
    for name, one in found.items():
        assert one.tokens == other[name].tokens
        for kind in ("forward", "backward", "energy", "shares", "unquantized"):
            assert np.array_equal(getattr(one, kind), getattr(other[name], kind)), (name, kind)
    assert all(bool(parameter.isnan().all()) for parameter in apart.model.parameters()), "nothing stayed"


def test_a_checkpoint_from_disk_is_the_one_from_memory(tmp_path: Path, tiny_tokenizer: Any) -> None:
    model, text, stages = saved(tmp_path / "m", "Mixtral", tiny_tokenizer), tokens(4, 48, 512), Stages(quiet=True)
    subjects = {on_disk: Subject.of(load_model(str(model), on_disk=on_disk)) for on_disk in (False, True)}
    plan = measure(subjects[False], text, group_size=32).solve(eps=1e-4)
    for on_disk, subject in subjects.items():
        (tmp_path / str(on_disk)).mkdir()
        resume_folder = tmp_path / "kept" if on_disk else None
        round_and_write(subject, plan, text, "gptq", tmp_path / str(on_disk), resume_folder, stages)
    one, other = (load_file(tmp_path / str(on_disk) / "model.safetensors") for on_disk in subjects)
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)
    configs = [(tmp_path / str(on_disk) / "config.json").read_text() for on_disk in subjects]
    assert json.loads(configs[0]) == json.loads(configs[1])
    with torch.no_grad():
        whole = load_quantized(tmp_path / "True")(input_ids=text.ids).logits
        apart = open_quantized(tmp_path / "True", Subject.of(load_model(str(model))).segmented, torch.device("cpu"))
        torch.testing.assert_close(apart.output(text), whole)


def test_experts_stored_as_one_tensor_are_refused_for_transformers(
    tmp_path: Path, tiny_tokenizer: Any, text_file: Path
) -> None:
    model = saved(tmp_path / "m", "GptOss", tiny_tokenizer)
    result = natprec(
        "quantize", "--model", model, "--data", text_file, *SMALL, "--eps", "1e-3", "--engine", "transformers"
    )
    assert result.code == 2
    assert "experts of GptOssForCausalLM" in result.reason
    assert "--engine vllm" in result.reason
    quantized(tmp_path, model, text_file, "--rounding", "rtn")
    text = tokens(1, 12, 512)
    with torch.no_grad():
        ours = load_quantized(tmp_path / "out")(input_ids=text.ids).logits
        running = package.load(tmp_path / "out")(input_ids=text.ids).logits
    assert float((ours - running).abs().max()) <= ROUNDED * float(ours.abs().max())


def test_the_correction_counts_tokens_that_go_elsewhere() -> None:
    formats = [integer(bits, 64) for bits in range(2, 9)]
    dense = curve("layer", [4.0**-bits for bits in range(2, 9)], formats)
    plans = [measurement([replace(dense, tokens=seen)]).solve(eps=0.01) for seen in (None, 500)]
    plain, routed = (replace(plan, kl_predicted=0.009, eps_solved=0.009) for plan in plans)
    assert tightened(plain, 0.03) == pytest.approx(CORRECTION * 0.009 * 0.01 / 0.03)
    found = tightened(routed, 0.03)
    assert found + (0.03 - 0.009) * (found / 0.009) ** 0.5 == pytest.approx(CORRECTION * 0.01)
    assert found < tightened(plain, 0.03)


def test_a_model_in_memory(tiny_tokenizer: Any, tmp_path: Path) -> None:
    model, text = experts(std=0.02, vocab_size=512), tokens(8, 32, 512)
    plan = package.measure(model, tiny_tokenizer, text, group_size=32).solve(eps=1e-3)
    assert sum(choice.tokens is not None for choice in plan.sites.values()) == 2 * 4 * 3
    package.save(plan.apply(model, tiny_tokenizer, text), tmp_path / "out")
    assert package.verify(tmp_path / "out", model, tokens(4, 32, 512, seed=5)).kl_mean < 2e-3
