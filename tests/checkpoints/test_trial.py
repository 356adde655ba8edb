"""A checkpoint that plain transformers does not load: known beforehand, judged all the same, never thrown away."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from natprec.checkpoints.trial import refusal
from natprec.measurement.subject import Subject
from tests.arrange import experts, tokens
from tests.conftest import tiny_encoder, tiny_model
from tests.run_command import SMALL, natprec

SIZES: dict[str, dict[str, Any]] = {
    "Falcon": {"new_decoder_architecture": False, "multi_query": True, "parallel_attn": True, "bias": False},
    "Mamba2": {"num_heads": 8, "head_dim": 8, "n_groups": 1, "state_size": 16, "chunk_size": 8},
    "NanoChat": {},
    "RecurrentGemma": {"num_hidden_layers": 3, "lru_width": 32, "attention_window_size": 16},
    "Bloom": {},
    "GPTNeoX": {},
    "Qwen3Moe": {},
}  # fmt: skip


def model_of(family: str, **changes: Any) -> Any:
    return experts(family, **{**SIZES[family], **changes})


def gemma3() -> Any:
    """The scale of its embeddings is a buffer that no file has."""
    import transformers

    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = transformers.Gemma3TextConfig(**sizes, num_key_value_heads=2, head_dim=8, vocab_size=96, pad_token_id=0)
    return transformers.Gemma3ForCausalLM(config)


def nemotron(**changes: Any) -> Any:
    """Its files call `backbone` what its modules call `model`; some of its limits are infinite."""
    return experts(
        "NemotronH", layers_block_type=["mamba", "moe", "attention", "mlp"], mamba_num_heads=8, mamba_head_dim=8,
        ssm_state_size=16, n_groups=2, chunk_size=16, n_routed_experts=4, moe_shared_expert_intermediate_size=32,
        **changes,
    )  # fmt: skip


def saved(folder: Path, model: Any, tokenizer: Any) -> Path:
    model.to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def quantize(model: Path, text: Path, out: Path, *options: str) -> Any:
    return natprec(
        "quantize", "--model", model, "--data", text, "--eps", 0.05, "--eval-tokens", 512, *SMALL, "--out", out,
        "--json", *options,
    )  # fmt: skip


@pytest.mark.parametrize("family", ["Falcon", "Mamba2", "NanoChat", "RecurrentGemma"])
def test_packed_weights_that_transformers_cannot_make_ready_are_known_beforehand(family: str) -> None:
    subject = Subject.in_memory(model_of(family), None)
    for engine in ("vllm", "sglang", "transformers"):
        assert "no attribute 'weight'" in (refusal(subject, engine) or "")
    assert refusal(subject, "natprec") is None, "never loaded by transformers"


def test_what_transformers_loads_passes_the_trial() -> None:
    models = [*map(model_of, ("Bloom", "GPTNeoX", "Qwen3Moe")), gemma3(), tiny_model(), tiny_encoder()]
    for model in models:
        assert refusal(Subject.in_memory(model, None), "transformers") is None


def test_a_model_that_transformers_does_not_even_load_dense_is_not_blamed(monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of("Falcon")
    subject = Subject.in_memory(model, None)

    def fails(*_: Any, **__: Any) -> None:
        raise RuntimeError("of another cause")

    monkeypatch.setattr(type(model), "from_pretrained", fails)
    assert refusal(subject, "transformers") is None


@pytest.mark.parametrize("family", ["Falcon", "NanoChat"])
def test_it_is_judged_by_unpacking(family: str, tmp_path: Path, tiny_tokenizer: Any, text_file: Path) -> None:
    model = saved(tmp_path / "m", model_of(family, vocab_size=512), tiny_tokenizer)
    result = quantize(model, text_file, tmp_path / "out")
    assert result.code == 0, result.err
    assert result.err.count("unpacking the codes itself") == 1
    assert 0 < json.loads(result.out)["kl_mean"] <= 0.05
    again = natprec("verify", tmp_path / "out", "--model", model, "--eval-data", text_file, "--eval-tokens", 512,
                    "--sequence-length", 64, "--json")  # fmt: skip
    assert again.code == 0, again.err
    assert "unpacking the codes itself" in again.err


def test_the_engine_itself_is_refused_before_measuring(tmp_path: Path, tiny_tokenizer: Any, text_file: Path) -> None:
    model = saved(tmp_path / "m", model_of("Falcon", vocab_size=512), tiny_tokenizer)
    result = quantize(model, text_file, tmp_path / "out", "--engine", "transformers")
    assert result.code == 2
    assert "use --engine vllm" in result.reason
    assert "measure" not in result.err
    assert not (tmp_path / "out").exists()


def test_with_transformers_as_engine_its_report_is_clean_and_its_logits_count(
    tmp_path: Path, tiny_tokenizer: Any, text_file: Path
) -> None:
    """Nemotron-H's targets were called as its files are: transformers matched none, and drew random modules."""
    from transformers import AutoModelForCausalLM

    model = saved(tmp_path / "m", nemotron(vocab_size=512), tiny_tokenizer)
    result = quantize(model, text_file, tmp_path / "out", "--engine", "transformers")
    assert result.code == 0, result.err
    loaded, report = AutoModelForCausalLM.from_pretrained(
        tmp_path / "out", dtype=torch.float32, output_loading_info=True
    )
    assert not any(report.values()), report
    text = tokens(4, 64, 512)
    original = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    with torch.no_grad():
        one, two = (each(input_ids=text.ids).logits.double().log_softmax(-1) for each in (original, loaded))
    assert float((one.exp() * (one - two)).sum(-1).mean()) <= 2 * 0.05


def test_a_loading_report_with_something_random_is_no_verdict(
    tmp_path: Path, tiny_tokenizer: Any, text_file: Path
) -> None:
    """The targets as vLLM wants them: the verdict by transformers is an error, and the checkpoint stays."""
    model = saved(tmp_path / "m", nemotron(vocab_size=512), tiny_tokenizer)
    out = tmp_path / "out"
    assert quantize(model, text_file, out, "--engine", "transformers").code == 0
    config = (out / "config.json").read_text()
    (out / "config.json").write_text(config.replace('"model.layers.', '"backbone.layers.'))
    result = natprec("verify", out, "--model", model, "--eval-data", text_file, "--eval-tokens", 512,
                     "--sequence-length", 64)  # fmt: skip
    assert result.code == 2
    assert "missing, so random" in result.reason


def test_config_json_is_json(tmp_path: Path, tiny_tokenizer: Any, text_file: Path) -> None:
    from transformers import AutoConfig

    def refuse(word: str) -> None:
        raise AssertionError(f"{word} is no JSON")

    model = saved(tmp_path / "m", nemotron(vocab_size=512), tiny_tokenizer)
    limits = AutoConfig.from_pretrained(model).to_dict()
    infinite = [name for name, value in limits.items() if isinstance(value, list | tuple) and math.inf in value]
    assert infinite, "the case is not one"
    assert quantize(model, text_file, tmp_path / "out").code == 0
    json.loads((tmp_path / "out" / "config.json").read_text(), parse_constant=refuse)
    again = AutoConfig.from_pretrained(tmp_path / "out").to_dict()
    assert all(list(again[name]) == list(limits[name]) for name in infinite)


def test_without_a_verdict_the_checkpoint_stays(
    tmp_path: Path, tiny_folder: Path, text_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import natprec.checkpoints.dense_reader as reload

    def fails(*_: Any) -> None:
        raise RuntimeError("of a library that is too old")

    out = tmp_path / "out"
    with monkeypatch.context() as patched:
        patched.setattr(reload, "_plain", fails)
        patched.setattr(reload, "_filled", fails)
        result = quantize(tiny_folder, text_file, out)
    assert result.code == 4
    assert "of a library that is too old" in result.err
    assert f"natprec verify {out} --model {tiny_folder} --eval-data {text_file}" in result.err
    assert "Traceback" not in result.err
    assert ".natprec-" not in result.err, "names the folder that is there"
    assert sorted(file.name for file in tmp_path.iterdir()) == ["out"]
    assert {"plan.json", "config.json", "model.safetensors"} <= {file.name for file in out.iterdir()}
    assert (out / "natprec" / "measurement.safetensors").is_file()
    judged = natprec("verify", out, "--model", tiny_folder, "--eval-data", text_file, "--eval-tokens", 512,
                     "--sequence-length", 64, "--json")  # fmt: skip
    assert judged.code == 0, judged.err
