"""What a loader passes over is in the quantized checkpoint all the same: tensors, dtypes, the head, files."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import natprec as library
from natprec.checkpoints.compressed_tensors import write_weights
from natprec.checkpoints.dense_reader import load_quantized, open_quantized
from natprec.formats.listing import naming_bytes
from natprec.measurement.subject import Subject
from natprec.models.headers import read_headers
from natprec.models.loading import load_model
from natprec.runtime import load
from tests.arrange import experts, tokens
from tests.conftest import tiny_encoder, tiny_model
from tests.run_command import SMALL, Result, natprec

MTP = {
    "mtp.fc.weight": torch.randn(64, 128).bfloat16(),
    "mtp.layers.0.input_layernorm.weight": torch.ones(64),
    "mtp.layers.0.mlp.experts.gate_up_proj": torch.randn(2, 8, 64).bfloat16(),
    "mtp.table": torch.arange(6),
}


def made(folder: Path, tokenizer: Any, model: Any = None, change: Callable[[dict[str, Tensor]], Any] = dict) -> Path:
    """A saved bfloat16 model whose tensors are changed afterwards."""
    (model or tiny_model(tie_word_embeddings=False)).to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    tensors = load_file(folder / "model.safetensors")
    save_file(change(tensors), folder / "model.safetensors", {"format": "pt"})
    return folder


def quantized(folder: Path, text: Path, out: Path, way: str, weights: str, engine: str = "vllm") -> Result:
    """A checkpoint by `quantize`, or by `measure`, `solve` and `apply`."""
    common = ["--model", folder, "--tokens", "256", *SMALL[2:], "--data", text, "--weights", weights]
    if engine == "llama.cpp":
        common = ["--model", folder, "--tokens", "256", "--sequence-length", "64", "--data", text]
    if way == "quantize":
        done = natprec("quantize", *common, "--bits", "5", "--eval-tokens", "128", "--engine", engine, "--out", out)
    else:
        measured, plan = out.parent / "measured", out.parent / "plan.json"
        assert natprec("measure", *common, "--engine", engine, "--out", measured).code == 0
        assert natprec("solve", measured, "--bits", "5", "--out", plan).code == 0
        done = natprec("apply", plan, *(part for part in common if part not in ("--group-size", "32")),
                       "--out", out)  # fmt: skip
    assert done.code == 0, done.err
    return done


WAYS = [("quantize", "memory"), ("quantize", "disk"), ("apply", "memory"), ("apply", "disk")]


@pytest.mark.parametrize(("way", "weights"), WAYS)
def test_draft_layers_are_carried_over(
    tmp_path: Path, tiny_tokenizer: Any, text_file: Path, way: str, weights: str
) -> None:
    folder, out = made(tmp_path / "m", tiny_tokenizer, change=lambda found: found | MTP), tmp_path / "out"
    done = quantized(folder, text_file, out, way, weights)
    assert "4 tensors have no place in LlamaForCausalLM (mtp.fc.weight, " in done.err
    assert "carried over as they are" in done.err
    stored = load_file(out / "model.safetensors")
    for name, value in MTP.items():
        assert stored[name].dtype == value.dtype
        assert torch.equal(stored[name], value)
    ignore = json.loads((out / "config.json").read_text())["quantization_config"]["ignore"]
    assert {"mtp.fc", r"re:mtp\.layers\.0\.mlp\.experts\..*"} <= set(ignore)
    assert plain(out) == set(MTP)
    assert load(out)(input_ids=tokens(1, 5).ids).logits.isfinite().all()
    extra = sum(value.nbytes for value in MTP.values())
    bare = Subject.of(load_model(str(made(tmp_path / "bare", tiny_tokenizer))))
    assert Subject.of(load_model(str(folder))).carried_bytes == bare.carried_bytes + extra, "the forecast knows them"


def plain(folder: Path) -> set[str]:
    """What plain transformers has no place for in a checkpoint; nothing else may be wrong with it."""
    from transformers import AutoModelForCausalLM

    _, report = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["mismatched_keys"]
    return set(report["unexpected_keys"])


def test_deepseek_draft_layers_that_transformers_drops_by_name(tmp_path: Path, tiny_tokenizer: Any) -> None:
    """Its class lists them as to be ignored, so its report does not; DeepSeek has experts there, one by one."""
    draft = {
        f"model.layers.61.mlp.experts.{number}.{name}.weight": torch.randn(32, 32).bfloat16()
        for number in range(2)
        for name in ("gate_proj", "up_proj", "down_proj")
    }
    folder = made(tmp_path / "m", tiny_tokenizer, experts("Mixtral"), change=lambda found: found | draft)
    for on_disk in (False, True):
        loaded = load_model(str(folder), on_disk=on_disk)
        assert loaded.leftovers.tensors.keys() == draft.keys()
        assert "model.layers.61.mlp.experts.1.up_proj" in loaded.leftovers.modules


def test_what_is_carried_is_sharded_and_indexed(tmp_path: Path) -> None:
    own = {f"own.{number}": torch.ones(64, 64) for number in range(3)}
    write_weights(tmp_path, own, 20_000, MTP)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())["weight_map"]
    assert index.keys() == own.keys() | MTP.keys()
    found = read_headers(tmp_path.glob("*.safetensors"))
    assert {name: header.file.name for name, header in found.items()} == index


def test_a_second_file_of_weights(tmp_path: Path, tiny_tokenizer: Any) -> None:
    """Engines read all files of a folder; a copy in another form is not more weights."""
    folder = made(tmp_path / "m", tiny_tokenizer)
    save_file({"mtp.fc.weight": MTP["mtp.fc.weight"]}, folder / "mtp.safetensors")
    shutil.copy(folder / "model.safetensors", folder / "model.fp16.safetensors")
    save_file({"layers.0.wq": torch.ones(2)}, folder / "consolidated.safetensors")
    found = load_model(str(folder)).leftovers
    assert [*found.tensors] == ["mtp.fc.weight"]
    assert torch.equal(found.read()["mtp.fc.weight"], MTP["mtp.fc.weight"])
    assert found.left == ("consolidated.safetensors", "model.fp16.safetensors")


def test_a_head_for_another_task(tmp_path: Path, encoder_tokenizer: Any) -> None:
    """An encoder is quantized without it; it stays in the file."""
    folder = made(tmp_path / "m", encoder_tokenizer, tiny_encoder("BertForMaskedLM"))
    found = load_model(str(folder)).leftovers.tensors
    assert "cls.predictions.transform.dense.weight" in found
    assert all(name.startswith("cls.") for name in found)


def test_what_a_model_makes_for_itself_is_no_leftover(tmp_path: Path, encoder_tokenizer: Any) -> None:
    old = {"embeddings.position_ids": torch.arange(128)[None]}
    folder = made(tmp_path / "m", encoder_tokenizer, tiny_encoder(), change=lambda found: found | old)
    assert not load_model(str(folder)).leftovers.tensors


def deepseek() -> Any:
    return experts(
        "DeepseekV3", n_routed_experts=4, n_shared_experts=1, first_k_dense_replace=1, kv_lora_rank=32, q_lora_rank=32,
        qk_rope_head_dim=8, v_head_dim=8, qk_nope_head_dim=8, n_group=2, topk_group=1, num_key_value_heads=4,
        vocab_size=512,
    )  # fmt: skip


def in_float32(*ends: str) -> Callable[[dict[str, Tensor]], dict[str, Tensor]]:
    """These tensors with values that no 16 bits hold."""

    def change(found: dict[str, Tensor]) -> dict[str, Tensor]:
        return {
            name: 0.5 + 0.001 * torch.rand(value.shape) if name.endswith(ends) else value
            for name, value in found.items()
        }

    return change


@pytest.mark.parametrize(("way", "weights"), WAYS)
@pytest.mark.parametrize(
    ("model", "ends"),
    [
        (deepseek, ("e_score_correction_bias", "gate.weight", "model.norm.weight")),
        (lambda: tiny_model(tie_word_embeddings=False), ("norm.weight", "embed_tokens.weight")),
    ],
    ids=["deepseek", "llama"],
)
def test_float32_among_16_bits_stays(
    tmp_path: Path, tiny_tokenizer: Any, text_file: Path, way: str, weights: str, model: Any, ends: tuple[str, ...]
) -> None:
    folder, out = made(tmp_path / "m", tiny_tokenizer, model(), in_float32(*ends)), tmp_path / "out"
    quantized(folder, text_file, out, way, weights)
    before, after = load_file(folder / "model.safetensors"), load_file(out / "model.safetensors")
    checked = 0
    for name, value in before.items():
        if name in after and not name.endswith("layernorm.weight"):  # those may have been rescaled
            assert after[name].dtype == value.dtype, name
            assert not name.endswith(ends) or torch.equal(after[name], value), name
            checked += name.endswith(ends)
        elif name in after:
            assert after[name].dtype == value.dtype, name
    assert checked >= 2
    whole = load_quantized(out)
    apart = open_quantized(out, Subject.of(load_model(str(folder))).segmented, torch.device("cpu"))
    text = tokens(1, 6)
    torch.testing.assert_close(apart.output(text), whole(input_ids=text.ids).logits, rtol=0, atol=2e-5)
    if way == "apply":
        plan = json.loads((out / "plan.json").read_text())
        stored = sum(value.nbytes for name, value in after.items() if not name.endswith("weight_shape"))
        beside = naming_bytes("compressed-tensors", plan["sites"]) + Subject.of(load_model(str(folder))).carried_bytes
        assert stored == plan["stored_bytes"] - beside


def test_a_float32_checkpoint_is_written_in_16_bits(tiny_folder: Path) -> None:
    """It has no exceptions: all of it was float32."""
    assert load_model(str(tiny_folder)).weights.dtypes == {}


def test_float32_in_a_model_that_is_in_memory(tmp_path: Path) -> None:
    model = tiny_model(vocab_size=96).to(torch.bfloat16)
    model.model.norm.float()
    model.model.norm.weight.data += 1e-4
    expected = model.model.norm.weight.clone()
    text = tokens(2, 16)
    plan = library.measure(model, None, text, group_size=32).solve(bits=5)
    model.to(torch.bfloat16).model.norm.float().weight.data = expected.clone()
    library.save(library.apply(plan, model, None, text), tmp_path / "out")
    stored = load_file(tmp_path / "out" / "model.safetensors")
    assert torch.equal(stored["model.norm.weight"], expected)
    assert stored["model.embed_tokens.weight"].dtype == torch.bfloat16


@pytest.mark.parametrize(("way", "weights"), WAYS)
def test_the_config_says_tied_and_the_file_holds_two(
    tmp_path: Path, tiny_tokenizer: Any, text_file: Path, way: str, weights: str
) -> None:
    folder, out = made(tmp_path / "m", tiny_tokenizer), tmp_path / "out"
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "tie_word_embeddings": True}))
    done = quantized(folder, text_file, out, way, weights, engine="transformers")
    assert "the output head is untied" in done.err
    assert json.loads((out / "config.json").read_text())["tie_word_embeddings"] is False
    loaded = load_quantized(out)
    assert loaded.lm_head.weight is not loaded.model.embed_tokens.weight  # type: ignore[union-attr]
    assert plain(out) == set()


def test_a_head_tied_by_hand(tmp_path: Path) -> None:
    """A notebook may do so; the config follows."""
    model = tiny_model(tie_word_embeddings=False, vocab_size=96)
    model.lm_head.weight = model.model.embed_tokens.weight
    text = tokens(2, 16)
    plan = library.measure(model, None, text, group_size=32).solve(bits=5)
    library.save(library.apply(plan, model, None, text), tmp_path / "out")
    reloaded: Any = load_quantized(tmp_path / "out")
    assert reloaded.config.tie_word_embeddings is True
    assert torch.equal(reloaded.lm_head.weight, reloaded.model.embed_tokens.weight)


@pytest.mark.parametrize(("way", "weights"), [*WAYS, ("quantize", "gguf"), ("apply", "gguf")])
def test_files_beside_the_weights(tmp_path: Path, tiny_tokenizer: Any, text_file: Path, way: str, weights: str) -> None:
    folder, out = made(tmp_path / "m", tiny_tokenizer, change=lambda found: found | MTP), tmp_path / "out"
    copied = ("LICENSE", "NOTICE.txt", "preprocessor_config.json", "video_preprocessor_config.json",
              "processor_config.json", "chat_template.json", "tokenizer.model")  # fmt: skip
    for name in (*copied, "README.md", "eval.yaml"):
        (folder / name).write_text(f"{{}} of {name}")
    gguf = weights == "gguf"
    done = quantized(folder, text_file, out, way, "memory" if gguf else weights, "llama.cpp" if gguf else "vllm")
    assert "not copied: README.md, eval.yaml" in done.err
    for name in copied:
        if gguf and name == "tokenizer.model":  # a GGUF file has its own within
            assert not (out / name).exists()
        else:
            assert (out / name).read_bytes() == (folder / name).read_bytes()
    assert not (out / "README.md").exists()
    assert ("GGUF has no names for them: left out" in done.err) is gguf


def test_a_matrix_of_another_shape_is_refused_before_it_is_read(tmp_path: Path, tiny_tokenizer: Any) -> None:
    name = "model.layers.0.mlp.up_proj.weight"
    folder = made(tmp_path / "m", tiny_tokenizer, change=lambda found: found | {name: torch.ones(96, 64).bfloat16()})
    for on_disk in (False, True):
        with pytest.raises(library.NatprecError, match="download it again"):
            load_model(str(folder), on_disk=on_disk)
