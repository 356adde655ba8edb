"""What config.json says is read in one place: which group a module belongs to, and what no such file may say."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from compressed_tensors.quantization import QuantizationScheme
from compressed_tensors.utils import match_targets
from torch import nn

from natprec.checkpoints.dense_reader import load_quantized
from natprec.errors import InputError
from natprec.formats import activation, integer
from natprec.formats.compressed_tensors import arguments
from natprec.models.stored_config import StoredConfig
from natprec.runtime.load import load
from tests.arrange import subject, tokens
from tests.runtime.test_load import written

TARGETS = [["Linear"], ["re:.*down_proj"], ["model.layers.1.mlp.down_proj"], ["re:.*q_proj", "lm_head"], ["Embedding"]]


def described(targets: list[list[str]], **more: Any) -> dict[str, Any]:
    """Groups of 2 bits and up, so that the width tells which it is."""
    groups = {
        f"group_{bits}": {"targets": own, "format": "pack-quantized", "weights": arguments(integer(bits, 32))}
        for bits, own in enumerate(targets, 2)
    }
    return {"quant_method": "compressed-tensors", "config_groups": groups, **more}


def test_what_says_more_wins_as_in_the_library() -> None:
    config = described(TARGETS)
    for group in config["config_groups"].values():
        QuantizationScheme.model_validate(group)
    own = {target: name for name, group in config["config_groups"].items() for target in group["targets"]}
    found = StoredConfig(Path("folder"), config)
    model = subject().model
    groups = set()
    for name, module in model.named_modules():
        matched = match_targets(name, module, list(own))
        group = found.of(name, module=module)
        assert (group.name if group else None) == (own[matched[0]] if matched else None), name
        groups.add(group.name if group else None)
    assert groups == {*config["config_groups"], None}


def test_what_is_ignored_has_no_group() -> None:
    config = described([["Linear"]], ignore=["lm_head", "re:.*gate$", "Embedding"])
    found = StoredConfig(Path("folder"), config)
    assert found.of("up", module=nn.Linear(1, 1))
    assert found.of("lm_head", module=nn.Linear(1, 1)) is None
    assert found.of("mlp.gate", module=nn.Linear(1, 1)) is None
    assert found.of("embed", module=nn.Embedding(1, 1)) is None
    assert found.of("up") is None, "a class needs a module"


def test_rounded_inputs_of_classes_are_judged(tmp_path: Path, tiny_tokenizer: Any) -> None:
    """As llm-compressor writes them: the judge compared names alone, and left such inputs as they were."""
    named = written(tmp_path / "named", subject(tiny_tokenizer), integer(4, 32), "vllm")
    config = json.loads((named / "config.json").read_text())
    (group,) = config["quantization_config"]["config_groups"].values()
    group["input_activations"] = arguments(activation(8))
    logits = []
    for targets, ignore in ((group["targets"], ["lm_head"]), (["Linear"], ["lm_head"]), (["Linear"], ["Linear"])):
        group["targets"], config["quantization_config"]["ignore"] = targets, ignore
        folder = Path(shutil.copytree(named, tmp_path / f"copy-{len(logits)}"))
        (folder / "config.json").write_text(json.dumps(config))
        if ignore == ["lm_head"]:
            logits.append(load_quantized(folder)(input_ids=tokens(2, 16).ids).logits)
            runs = load(folder)(input_ids=tokens(2, 16).ids).logits
            assert (runs - logits[-1]).abs().max() < 0.02 * logits[-1].abs().max()
    assert torch.equal(*logits)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"quant_method": "gptq"}, r"quant_method is 'gptq', and must be 'compressed-tensors'"),
        ({"config_groups": None}, "config_groups is None, and must be an object"),
        ({"config_groups": {"a": 3}}, r"config_groups\['a'\] is 3, and must be an object"),
        ({"config_groups": {"a": {"weights": {}, "targets": "Linear"}}}, "targets is 'Linear', and must be a list"),
        ({"config_groups": {"a": {"weights": {}, "targets": [3]}}}, r"targets\[0\] is 3, and must be text"),
        ({"config_groups": {"a": {"weights": 4, "targets": []}}}, "weights is 4, and must be an object"),
        ({"config_groups": {"a": {"weights": {}, "targets": [], "format": None}}}, "format is None, and must be text"),
        ({"ignore": "lm_head"}, "ignore is 'lm_head', and must be a list"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("opened", [load, load_quantized])
def test_what_it_cannot_be_is_named(tmp_path: Path, opened: Any, change: dict[str, Any], said: str) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"quantization_config": described([["Linear"]]) | change}))
    (tmp_path / "model.safetensors").write_bytes((2).to_bytes(8, "little") + b"{}")
    with pytest.raises(InputError, match=f"config.json' describes no checkpoint .*{said}; quantize again"):
        opened(tmp_path)
