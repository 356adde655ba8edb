"""What is judged is what was planned and what config.json says: weights, inputs and cache; of every engine, on every
path by which a checkpoint is opened."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from natprec.checkpoints.dense_reader import load_quantized, open_quantized
from natprec.formats import engine_profile
from natprec.formats.compressed_tensors import activation_format
from natprec.measurement.measure import measure
from natprec.measurement.subject import Subject
from natprec.models.attention import AttentionHook
from natprec.pipeline import rounded
from natprec.quantizers.activations import flowing_scale
from natprec.rounding.flows import flows_rounded
from natprec.solver import Plan
from natprec.utils.hooks import attached
from natprec.utils.progress import Stages
from tests.arrange import experts, restore, snapshot, subject, tokens

QUIET = Stages(quiet=True)
TEXT = tokens(2, 16, seed=3)

CASES = {
    ("vllm", "llama"): {"activations": "8", "kv": "8"},
    ("vllm", "Mixtral"): {"activations": "8", "kv": "8"},
    ("sglang", "llama"): {"activations": "8"},
    ("sglang", "Mixtral"): {"activations": "8"},
    ("transformers", "llama"): {"activations": "8", "kv": "8"},
    ("transformers", "Qwen3Moe"): {"activations": "4", "kv": "4"},
    ("natprec", "llama"): {"activations": "auto", "kv": "4"},
    ("natprec", "Qwen3Moe"): {"activations": "8", "kv": "8"},
}
"""Engine and family → what is asked for. Experts are unpacked by natprec, a llama is loaded by transformers."""


@dataclass(frozen=True)
class Case:
    engine: str
    made: Subject
    plan: Plan
    folder: Path
    expected: dict[str, Tensor]
    weights_only: dict[str, Tensor]


def observed(run: Any, model: nn.Module) -> dict[str, Tensor]:
    """What every Linear computes and what attention gets to see, while some tokens pass, and the logits."""
    found: dict[str, Tensor] = {}

    def states(module: nn.Module, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        found.update({f"{names[module]}:key": key, f"{names[module]}:value": value})
        return key, value

    names = {module: name for name, module in model.named_modules()}
    hooks: list[Any] = [AttentionHook(module, states) for module in names]
    for module, name in names.items():
        if isinstance(module, nn.Linear):
            hooks.append(module.register_forward_hook(lambda _, args, output, name=name: found.update({name: output})))
    with torch.no_grad(), attached(hooks):
        found["logits"] = run(TEXT)
    return found


@pytest.fixture(scope="module", params=CASES, ids="-".join)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    engine, family = request.param
    made = subject() if family == "llama" else Subject.in_memory(experts(family), None, "small")
    measured = measure(made, tokens(8, 16), engine=engine, group_size=32, sites="all", rounding="rtn")
    plan = measured.solve(eps=2.0, **CASES[engine, family])
    folder, original = tmp_path_factory.mktemp("judged"), snapshot(made.model)
    codes = rounded.round_to_plan(made, plan, None, "rtn", QUIET)
    weights_only = observed(made.segmented.output, made.model)
    with flows_rounded(made.model, made.activations, plan):
        expected = observed(made.segmented.output, made.model)
    rounded.write(made, plan, codes, folder, QUIET)
    restore(made.model, original)
    return Case(engine, made, plan, folder, expected, weights_only)


@pytest.mark.parametrize("path", ["whole", "by segment"])
def test_what_is_judged_is_what_was_planned(case: Case, path: str) -> None:
    if path == "whole":
        model = load_quantized(case.folder, case.engine)
        got = observed(lambda text: case.made.segmented.distortion.output(model, text), model)
    else:
        segmented = open_quantized(case.folder, case.made.segmented, TEXT.device, case.engine)
        got = observed(segmented.output, segmented.model)
    names = case.expected.keys()
    if path == "whole" and case.engine == "transformers" and case.made.segmented.routed:
        # plain transformers runs experts as one tensor in bfloat16; before them all is the same
        names = {name for name in names if "layers.0.self_attn" in name}
        assert len(names) >= 6
    else:
        assert got.keys() == names
    for name, value in ((name, case.expected[name]) for name in names):
        torch.testing.assert_close(got[name], value, msg=lambda said, name=name: f"{name}: {said}")
    assert not torch.allclose(case.expected["logits"], case.weights_only["logits"], rtol=1e-4), "activations must show"


def test_what_was_planned_is_what_is_written(case: Case) -> None:
    config = json.loads((case.folder / "config.json").read_text())["quantization_config"]
    full_range = engine_profile(case.engine).full_range
    plan = Plan.load(case.folder / "plan.json")
    assert plan == case.plan
    said = {
        target: group
        for group in config["config_groups"].values()
        for target in group["targets"]
        if not target.startswith("re:")
    }
    for site in case.made.sites:
        planned, group = plan.sites[site.name].format, said.get(site.name)
        if site.experts:
            continue  # named by expressions, under the names of the checkpoint
        assert (planned is None) == (group is None), site.name
        if group is None or planned is None:
            continue
        assert (group["weights"]["num_bits"], group["weights"]["symmetric"]) == (planned.bits, planned.symmetric)
        inputs = group["input_activations"] and activation_format(group["input_activations"], full_range)
        assert inputs == plan.rounded_inputs.get(site.fused_group), site.name
    assert plan.rounded_inputs
    cache = config.get("kv_cache_scheme")
    assert (cache and activation_format(cache, full_range)) == (plan.cache and plan.cache.format)
    if plan.cache is not None and not plan.cache.format.dynamic:
        stored = load_file(case.folder / "model.safetensors")
        for name, largest in plan.cache.largest.items():
            module, _, kind = name.rpartition(":")
            scale = stored[f"{module}.{kind[0]}_scale"].float()
            assert torch.equal(scale, flowing_scale(plan.cache.format, torch.tensor([largest])))


def test_transformers_is_judged_as_it_computes(case: Case) -> None:
    """With that engine the verdict is of plain transformers' logits, also where natprec unpacks the experts."""
    import transformers

    if case.engine != "transformers":
        pytest.skip("other engines round by another rule than plain transformers")
    plain = transformers.AutoModelForCausalLM.from_pretrained(case.folder, dtype=torch.float32)
    theirs = observed(lambda text: plain(input_ids=text.ids).logits, plain)
    for rule, same in ((case.engine, True), ("vllm", False)):
        model = load_quantized(case.folder, rule)
        ours = observed(lambda text, model=model: model(input_ids=text.ids).logits, model)
        # experts are another matter: transformers computes them in bfloat16
        exact = [name for name in theirs if "layers.0.self_attn" in name or not case.made.segmented.routed]
        assert len(exact) >= 6
        assert all(torch.allclose(ours[name], theirs[name], atol=1e-5) for name in exact) == same, rule


def test_a_cache_without_its_scales_is_refused(case: Case, tmp_path: Path) -> None:
    """It would be judged as if it were not rounded."""
    import shutil

    from safetensors.torch import save_file

    from natprec.errors import ModelError

    if case.plan.cache is None or case.plan.cache.format.dynamic:
        pytest.skip("its scales are not fixed")
    folder = Path(shutil.copytree(case.folder, tmp_path / "copy"))
    kept = {name: t for name, t in load_file(folder / "model.safetensors").items() if not name.endswith("k_scale")}
    save_file(kept, folder / "model.safetensors", {"format": "pt"})
    (folder / "plan.json").unlink()
    with pytest.raises(ModelError, match=r"no scales \['model.layers.0.self_attn.k_scale', .*v_scale'\] of the cache"):
        load_quantized(folder, case.engine)(input_ids=TEXT.ids)
