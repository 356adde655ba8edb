"""GPT-2, whose matrices are stored the other way round (Conv1D), is an ordinary model: from text to a written token."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from natprec.checkpoints.dense_reader import load_quantized
from natprec.measurement.measure import measure
from natprec.measurement.subject import Subject
from natprec.models.layers import known_layer
from natprec.models.weight_sites import site_layer
from natprec.pipeline.rounded import round_and_write
from natprec.runtime.load import load
from natprec.utils.progress import Stages
from tests.arrange import tokens
from tests.conftest import VOCABULARY
from tests.models.test_weights import opened, saved
from tests.run_command import SMALL, natprec

CONV1D = {"attn.c_attn": (192, 64), "attn.c_proj": (64, 64), "mlp.c_fc": (256, 64), "mlp.c_proj": (64, 256)}
"""Of a block, as (outputs, inputs)."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer: Any) -> Path:
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    sizes = {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 256, "bos_token_id": 0, "eos_token_id": 1}
    model = GPT2LMHeadModel(GPT2Config(vocab_size=VOCABULARY, initializer_range=0.1, **sizes))
    return saved(tmp_path_factory.mktemp("models") / "gpt2", model, tiny_tokenizer)


@pytest.fixture(scope="module")
def subject(folder: Path) -> Subject:
    return opened(folder, on_disk=False)


def test_its_matrices_are_sites_by_outputs_and_inputs(subject: Subject) -> None:
    shapes = {site.name: site.shape for site in subject.sites}
    for block in range(2):
        for name, shape in CONV1D.items():
            assert shapes[f"transformer.h.{block}.{name}"] == shape
    assert [site.name for site in subject.sites if site.tied] == ["transformer.wte"]
    assert len(subject.segmented.blocks) == 2
    assert {gauge.producer.rpartition(".")[2] for gauge in subject.gauges.values()} == {"ln_1", "ln_2"}


def test_from_text_to_a_token(folder: Path, tmp_path: Path, text_file: Path) -> None:
    out = tmp_path / "out"
    made = natprec(
        "quantize", "--model", folder, "--out", out, "--eps", "0.05", "--data", text_file, "--engine", "natprec",
        "--eval-tokens", "512", *SMALL,
    )  # fmt: skip
    assert made.code == 0, made.err
    verdict = json.loads((out / "verification.json").read_text())
    assert verdict["passed"]
    assert 0 < verdict["kl_mean"] <= 0.05
    formats = {name: site["format"] for name, site in json.loads((out / "plan.json").read_text())["sites"].items()}
    assert all(formats[f"transformer.h.0.{name}"] for name in CONV1D)
    stored = load_file(out / "model.safetensors")
    for name, shape in CONV1D.items():
        assert tuple(stored[f"transformer.h.1.{name}.weight_shape"].tolist()) == shape
    said = natprec("generate", out, "--prompt", "abc", "--max-new-tokens", "4", "--json")
    assert said.code == 0, said.err
    seen = natprec(
        "inspect", "--model", folder, "--plan", out / "plan.json", "--engine", "natprec", "--data", text_file,
        "--lower", "--tokens", "256", "--sequence-length", "64", "--group-size", "32", "--json",
    )  # fmt: skip
    assert seen.code == 0, seen.err
    graph = json.loads(seen.out)
    assert {f"transformer.h.0.{name}" for name in CONV1D} == graph["lowered"]["calls"].keys()
    assert graph["lowered"]["kernels"] < 0.1 * graph["lowered"]["rounding"]
    assert {f"transformer.h.1.{name}.weight" for name in CONV1D} < {each["source"] for each in graph["boundaries"]}
    assert natprec("verify", out, "--model", folder, "--eval-data", text_file, "--eval-tokens", "512").code == 0


def test_a_matrix_that_stays_at_16_bits_is_stored_as_transformers_stores_it(
    subject: Subject, folder: Path, tmp_path: Path
) -> None:
    """So that the checkpoint differs from the original's in nothing but what was quantized."""
    kept, text = "transformer.h.0.mlp.c_fc", tokens(4, 16)
    found = measure(subject, text, engine="natprec", group_size=32, rounding="rtn")
    found = replace(found, curves={**found.curves, kept: found.curves[kept].unknown()})
    fresh = opened(folder, on_disk=False)
    round_and_write(fresh, found.solve(eps=0.05), None, "rtn", tmp_path, tmp_path / "kept", Stages(quiet=True))
    stored, site = load_file(tmp_path / "model.safetensors"), next(each for each in fresh.sites if each.name == kept)
    assert stored[f"{kept}.weight"].shape == (64, 256)
    dense = load_quantized(tmp_path, "natprec")
    matrix = known_layer(dense.get_submodule(kept)).matrix
    assert torch.equal(matrix, site_layer(fresh.model, site).matrix.to(fresh.storage_dtype).float())
    with torch.no_grad():
        expected = dense(input_ids=text.ids).logits
        running = load(tmp_path).model(input_ids=text.ids).logits
    assert float((running - expected).abs().max()) < 5e-2 * float(expected.abs().max())


UNREAD = ("'transformer.h.0.attn.c_attn' is a Conv1D", "use --engine natprec")


@pytest.mark.parametrize(
    ("engine", "words"),
    [
        *((engine, UNREAD) for engine in ("vllm", "sglang", "transformers")),
        ("llama.cpp", ("'gpt2' cannot be written as GGUF", "use another --engine")),
    ],
)
def test_engines_that_do_not_read_it_are_refused_before_measuring(
    folder: Path, tmp_path: Path, text_file: Path, engine: str, words: tuple[str, str]
) -> None:
    found = natprec(
        "quantize", "--model", folder, "--out", tmp_path / "o", "--eps", "0.1", "--data", text_file, "--engine", engine
    )
    assert found.code == 2
    assert words[0] in found.reason
    assert found.reason.endswith(words[1])
    assert not (tmp_path / "o").exists()
