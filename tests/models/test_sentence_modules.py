"""Folders of sentence-transformers: what follows the pooling is measured, judged and carried over."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional

from natprec.config import QuantizeConfig
from natprec.distortions import EmbeddingDistance
from natprec.errors import ModelError
from natprec.formats import integer
from natprec.measurement.exact import exact_curves
from natprec.measurement.subject import Subject
from natprec.measurement.sweep import sweep
from natprec.models.encoders import companions
from natprec.models.loading import load_model
from natprec.pipeline import quantize as pipeline
from tests.arrange import tokens

DENSE = {"in_features": 32, "out_features": 8, "bias": True,
         "activation_function": "torch.nn.modules.activation.Tanh"}  # fmt: skip
TYPES = "sentence_transformers.models."


def sentence_folder(folder: Path, encoder_folder: Path, kinds: list[str], dense: dict[str, Any] | None = None) -> Path:
    """A tiny BERT followed by these modules; a Dense has 32 inputs and 8 outputs, a second one 8 and 8."""
    shutil.copytree(encoder_folder, folder)
    modules = [{"idx": 0, "name": "0", "path": "", "type": f"{TYPES}Transformer"}]
    size = 32
    for index, kind in enumerate(kinds, start=1):
        path = folder / f"{index}_{kind.rpartition('.')[2]}"
        modules.append({"idx": index, "name": str(index), "path": path.name,
                        "type": kind if "." in kind else TYPES + kind})  # fmt: skip
        path.mkdir()
        if kind == "Pooling":
            (path / "config.json").write_text('{"word_embedding_dimension": 32, "pooling_mode_mean_tokens": true}')
        if kind == "Dense":
            config = {**DENSE, **(dense or {})}
            (path / "config.json").write_text(json.dumps({**config, "in_features": size}))
            layer = {"linear.weight": torch.randn(8, size), "linear.bias": torch.randn(8)}
            layer = layer if config["bias"] else {"linear.weight": layer["linear.weight"]}
            save_file(layer, path / "model.safetensors")
            size = 8
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "config_sentence_transformers.json").write_text('{"similarity_fn_name": "cosine"}')
    return folder


def stored(folder: Path, module: str) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(folder / module / "model.safetensors")


@torch.no_grad()
def test_embeddings_are_made_in_the_order_of_modules_json(tmp_path: Path, encoder_folder: Path) -> None:
    kinds = ["Pooling", "Dense", "Normalize", "Dropout", "Dense"]
    folder = sentence_folder(tmp_path / "m", encoder_folder, kinds)
    loaded = load_model(str(folder))
    made, text = Subject.of(loaded), tokens(3, 9)
    first, second = stored(folder, "2_Dense"), stored(folder, "5_Dense")
    pooled = made.model(input_ids=text.ids).last_hidden_state.mean(1)
    dense = functional.normalize(torch.tanh(pooled @ first["linear.weight"].T + first["linear.bias"]))
    expected = torch.tanh(dense @ second["linear.weight"].T + second["linear.bias"])
    found = made.distortion.output(made.model, text)[:, 0]
    torch.testing.assert_close(found, expected)
    assert made.distortion.name == "embedding"
    other = found + 0.1 * torch.randn(3, 8)
    relative = (other - found).square().sum(-1) / found.square().sum(-1)
    torch.testing.assert_close(
        made.distortion.between(found[:, None], other[:, None], text)[:, 0], relative.double(), rtol=1e-5, atol=0
    )


@pytest.mark.parametrize(
    ("dense", "activation"),
    [
        ({"activation_function": "torch.nn.modules.linear.Identity", "bias": False}, nn.Identity()),
        ({"activation_function": "torch.nn.modules.activation.GELU"}, nn.GELU()),
    ],
)
@torch.no_grad()
def test_dense_layers(tmp_path: Path, encoder_folder: Path, dense: dict[str, Any], activation: nn.Module) -> None:
    folder = sentence_folder(tmp_path / "m", encoder_folder, ["Pooling", "Dense", "Normalize"], dense)
    made, text = Subject.of(load_model(str(folder))), tokens(3, 9)
    layer = stored(folder, "2_Dense")
    pooled = made.model(input_ids=text.ids).last_hidden_state.mean(1)
    expected = activation(pooled @ layer["linear.weight"].T + layer.get("linear.bias", torch.zeros(8)))
    found = made.distortion.output(made.model, text)[:, 0]
    torch.testing.assert_close(found, functional.normalize(expected))


@torch.no_grad()
def test_without_normalize_the_length_counts(tmp_path: Path, encoder_folder: Path) -> None:
    """Relative to the length, so that a tolerance means the same for embeddings of any length."""
    made = Subject.of(load_model(str(sentence_folder(tmp_path / "m", encoder_folder, ["Pooling"]))))
    text = tokens(3, 9)
    one = made.distortion.output(made.model, text)
    torch.testing.assert_close(one[:, 0], made.model(input_ids=text.ids).last_hidden_state.mean(1))
    torch.testing.assert_close(made.distortion.between(one, 1.1 * one, text), torch.full((3, 1), 0.01).double())
    assert not EmbeddingDistance().between(one, one, text).any()


def test_pooling_and_normalize_alone_are_what_they_were(tmp_path: Path, encoder_folder: Path) -> None:
    for index, kinds in enumerate((["Pooling", "Normalize"], ["Pooling", "Dropout", "Normalize"], [])):
        folder = sentence_folder(tmp_path / str(index), encoder_folder, kinds)
        assert load_model(str(folder)).head is None


@pytest.mark.parametrize("kinds", [["Pooling", "Dense", "Normalize"], ["Pooling", "Dense"], ["Pooling"]])
def test_the_sweep_agrees_with_the_definition(tmp_path: Path, encoder_folder: Path, kinds: list[str]) -> None:
    """Also where the layers behind the pooling scale vectors down or up: a gradient that misses them would show."""
    made = Subject.of(load_model(str(sentence_folder(tmp_path / "m", encoder_folder, kinds))))
    text, formats = tokens(64, 16), tuple(integer(bits, 32) for bits in (6, 8))
    sites = [site for site in made.sites if site.role == "linear" and "pooler" not in site.name]
    curves = sweep(made.segmented, sites, {site.name: formats for site in sites}, text,
                   scale_dtype=made.storage_dtype, seed=5)  # fmt: skip
    ratios = []
    for site, values in exact_curves(
        made.segmented, [(site, formats) for site in sites], text[:32], made.storage_dtype
    ):
        ratios += list(curves[site.name].kl() / values.mean(0))
    assert 0.75 < np.median(ratios) < 1.33


def test_what_is_judged_is_what_users_get(tmp_path: Path, encoder_folder: Path, text_file: Path) -> None:
    from transformers import AutoModel

    folder = sentence_folder(tmp_path / "m", encoder_folder, ["Pooling", "Dense", "Normalize"])
    request = QuantizeConfig(str(folder), eps=0.01, data=str(text_file), tokens=1024, eval_tokens=256, length=64,
                      group_size=32, rounding="rtn")  # fmt: skip
    out = tmp_path / "out"
    pipeline.quantize(request, out)
    for name in ("modules.json", "config_sentence_transformers.json", "1_Pooling/config.json", "2_Dense/config.json",
                 "2_Dense/model.safetensors"):  # fmt: skip
        assert (out / name).read_bytes() == (folder / name).read_bytes()
    original, again = Subject.of(load_model(str(folder))), AutoModel.from_pretrained(out, dtype=torch.float32).eval()
    distortion, text = original.distortion, tokens(8, 16)
    with torch.no_grad():
        reference, quantized = distortion.output(original.model, text), distortion.output(again, text)
    assert reference.shape == (8, 1, 8)
    assert 0 < distortion.between(reference, quantized, text).mean() < 0.03


@pytest.mark.parametrize(
    ("kinds", "dense", "words"),
    [
        (["Pooling", "LayerNorm"], {}, "has a module 'sentence_transformers.models.LayerNorm', natprec knows"),
        (["Pooling", "custom_st.Normalize"], {}, "has a module 'custom_st.Normalize'"),
        (["Dense", "Pooling"], {}, "has Dense, Pooling where one Pooling is to come"),
        (["Pooling", "Pooling"], {}, "has Pooling, Pooling where one Pooling is to come"),
        (["Pooling", "Dense"], {"activation_function": "os.system"}, "2_Dense has the activation 'os.system'"),
        (["Pooling", "Dense"], {"activation_function": "torch.nn.Softmax"}, "the activation 'torch.nn.Softmax'"),
        (["Pooling", "Dense"], {"module_input_name": "token_embeddings"}, "reads or writes 'token_embeddings'"),
    ],
)
def test_what_is_not_known_is_refused_by_name(
    tmp_path: Path, encoder_folder: Path, kinds: list[str], dense: dict[str, Any], words: str
) -> None:
    folder = sentence_folder(tmp_path / "m", encoder_folder, kinds, dense)
    with pytest.raises(ModelError) as caught:
        load_model(str(folder))
    assert words in str(caught.value)
    assert "remove its modules.json to compare means" in str(caught.value)


def test_dense_weights_are_needed(tmp_path: Path, encoder_folder: Path) -> None:
    folder = sentence_folder(tmp_path / "m", encoder_folder, ["Pooling", "Dense"])
    save_file({"linear.weight": torch.randn(8, 32)}, folder / "2_Dense" / "model.safetensors")
    with pytest.raises(ModelError, match=r"2_Dense/model.safetensors is not what its config.json says"):
        load_model(str(folder))
    (folder / "2_Dense" / "model.safetensors").rename(folder / "2_Dense" / "pytorch_model.bin")
    with pytest.raises(ModelError, match=r"2_Dense has no model.safetensors, and pickles are not read"):
        load_model(str(folder))


def test_nothing_outside_of_the_folder_is_read(tmp_path: Path, encoder_folder: Path) -> None:
    folder = sentence_folder(tmp_path / "m", encoder_folder, ["Pooling"])
    (folder / "modules.json").write_text(json.dumps([{"type": f"{TYPES}Pooling", "path": "../m/1_Pooling"}]))
    with pytest.raises(ModelError, match="no plain folder"):
        companions("m", str(folder))
