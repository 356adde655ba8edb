"""The GGUF file holds what was rounded, as transformers reads it, and as llama.cpp runs it where that is installed."""

from __future__ import annotations

import importlib.util
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gguf import GGUFReader
from torch import Tensor

from natprec.checkpoints.dense_reader import load_quantized
from natprec.checkpoints.gguf import FILE_NAME, GGUFCheckpoint
from natprec.errors import InputError, ModelError
from natprec.evaluation.verify import verify
from natprec.formats import GGUF_TYPES
from natprec.measurement.measure import measure
from natprec.measurement.subject import Subject
from natprec.models.gguf_architectures import architecture_of
from natprec.models.loading import load_model
from natprec.models.weight_sites import site_weight
from natprec.pipeline import rounded
from natprec.pipeline.request import for_engine
from natprec.quantizers import quantize
from natprec.solver import Plan
from natprec.tasks import Samples
from natprec.utils.atomic_files import folder_bytes
from natprec.utils.progress import Stages
from tests.arrange import experts, tokens
from tests.conftest import made_up_text, tiny_encoder, tiny_model

SIZES = {"hidden_size": 64, "intermediate_size": 256, "vocab_size": 512}
"""down_proj's rows are whole super-blocks, all others blocks of 32."""

OPENED = ["llama", "llama-tied-not", "mistral", "qwen2", "qwen3", "phi3", "gemma3_text"]
"""natprec itself reads their files."""

MODELS = [*OPENED, "qwen3_moe"]


def model_of(kind: str) -> Any:
    """A random model of one architecture, large enough in its weights to predict something."""
    import transformers

    if kind.startswith("llama"):
        model = tiny_model(**SIZES, tie_word_embeddings=kind == "llama")
    else:
        names = {"mistral": "Mistral", "qwen2": "Qwen2", "qwen3": "Qwen3", "phi3": "Phi3", "gemma3_text": "Gemma3",
                 "qwen3_moe": "Qwen3Moe"}  # fmt: skip
        name = names[kind]
        extra = {"qwen3": {"head_dim": 128},
                 "qwen3_moe": {"head_dim": 64, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 256,
                               "norm_topk_prob": True}, "phi3": {"pad_token_id": 0},
                 "gemma3_text": {"head_dim": 256, "query_pre_attn_scalar": 256, "sliding_window": 16, "pad_token_id": 0}
                 }.get(kind, {"sliding_window": None})  # fmt: skip
        config = getattr(transformers, "Gemma3TextConfig" if kind == "gemma3_text" else name + "Config")(
            **SIZES | ({"vocab_size": 32_064} if kind == "phi3" else {}),  # transformers reads no padding from GGUF
            num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=512,
            tie_word_embeddings=True, bos_token_id=0, eos_token_id=1, **extra,
        )  # fmt: skip
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = getattr(transformers, name + "ForCausalLM")(config).eval()
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(4)
            else:
                parameter.add_(torch.randn(parameter.shape, generator=draw) / 4)
    return model


@pytest.fixture(params=MODELS)
def made(request: pytest.FixtureRequest, tiny_tokenizer: Any) -> Subject:
    """Under a name that says nothing: of a "phi3" llama.cpp expects certain special tokens."""
    return for_engine(Subject.in_memory(model_of(request.param), tiny_tokenizer, "tiny"), "llama.cpp")


def planned(subject: Subject, bits: float, rounding: str = "rtn") -> Plan:
    return measure(subject, tokens(8, 16), engine="llama.cpp", rounding=rounding).solve(bits=bits)


def written(folder: Path, subject: Subject, plan: Plan, text: Samples | None = None) -> Any:
    codes = rounded.round_to_plan(subject, plan, text, plan.rounding, Stages(quiet=True))
    rounded.write(subject, plan, codes, folder, Stages(quiet=True))
    return subject.model


def logits(model: Any, text: Samples) -> Tensor:
    with torch.no_grad():
        return model(input_ids=text.ids).logits


def test_what_is_read_back_is_what_was_rounded(made: Subject, tmp_path: Path) -> None:
    plan = planned(made, 6.0)
    model = written(tmp_path, made, plan)
    again = load_quantized(tmp_path)
    text = tokens(2, 32, 512)
    torch.testing.assert_close(logits(again, text), logits(model, text), rtol=1e-5, atol=1e-5)
    types = {tensor.name: tensor.tensor_type.name for tensor in GGUFReader(tmp_path / FILE_NAME).tensors}
    names = architecture_of(made.model).tensor_names(made.model)  # the experts of a layer are one tensor
    by_tensor = {names[f"{name}.weight"]: each.format.name for name, each in plan.sites.items() if each.format}
    assert {name: kind for name, kind in types.items() if kind != "F32"} == by_tensor
    wanted = list(by_tensor.values())
    if made.model.config.vocab_size == SIZES["vocab_size"]:  # else it is nearly all embedding
        assert len(set(wanted)) > 2
        assert any(name.endswith("_K") for name in wanted)


def test_forecast_of_the_size(made: Subject, tmp_path: Path) -> None:
    """All but the padding, which is known to half a block per tensor."""
    plan = planned(made, 6.0)
    written(tmp_path, made, plan)
    (tmp_path / "plan.json").unlink()
    tensors = len(GGUFReader(tmp_path / FILE_NAME).tensors)
    assert abs(folder_bytes(tmp_path) - plan.stored_bytes) < 32 * tensors


def test_plan_survives_its_file(made: Subject, tmp_path: Path) -> None:
    plan = planned(made, 6.0)
    plan.save(tmp_path / "plan.json")
    assert Plan.load(tmp_path / "plan.json") == plan


def test_gptq_with_channels_rescaled_stays_one_model(tiny_tokenizer: Any, tmp_path: Path) -> None:
    """Queries, keys and values get types of their own and still share the scales of their input."""
    made = for_engine(Subject.in_memory(model_of("llama"), tiny_tokenizer, "llama"), "llama.cpp")
    text = tokens(8, 16, 512)
    found = measure(made, text, engine="llama.cpp")
    plan = found.solve(bits=6.0)
    assert any(len({plan.sites[name].format for name in fused_group}) > 1 for fused_group in _fused_groups(made))
    model = written(tmp_path, made, plan, text)
    torch.testing.assert_close(logits(load_quantized(tmp_path), text), logits(model, text), rtol=1e-5, atol=1e-5)


def _fused_groups(made: Subject) -> list[list[str]]:
    names: dict[str, list[str]] = {}
    for site in made.sites:
        names.setdefault(site.fused_group, []).append(site.name)
    return list(names.values())


@pytest.mark.parametrize("kind", OPENED)
def test_a_file_from_disk_is_the_one_from_memory(kind: str, tiny_tokenizer: Any, tmp_path: Path) -> None:
    """Byte by byte, in its verification too, and as a model whose weights stay in it."""
    model_of(kind).to(torch.bfloat16).save_pretrained(tmp_path / "model")
    tiny_tokenizer.save_pretrained(tmp_path / "model")
    loaded = [
        replace(load_model(str(tmp_path / "model"), on_disk=on_disk), tokenizer=tiny_tokenizer)
        for on_disk in (False, True)
    ]
    whole, apart = (for_engine(Subject.of(each), "llama.cpp") for each in loaded)
    assert not apart.segmented.weights.whole
    plan, text = measure(whole, tokens(4, 16), engine="llama.cpp").solve(bits=6.0), tokens(4, 32, 512)
    found = []
    for subject, folder in ((whole, tmp_path / "whole"), (apart, tmp_path / "apart")):
        kept = None if subject is whole else tmp_path / "kept"
        for each in filter(None, (folder, kept)):
            each.mkdir()
        rounded.round_and_write(subject, plan, text, "gptq", folder, kept, Stages(quiet=True))
        found.append(verify(folder, subject, text, plan, rounding="gptq", data="text", stages=Stages(quiet=True)))
    file = tmp_path / "apart" / FILE_NAME
    assert (tmp_path / "whole" / FILE_NAME).read_bytes() == file.read_bytes()
    assert found[0] == found[1]
    one, other, theirs = (Subject.of(load_model(str(file), **way)) for way in ({}, {"on_disk": True}, {"plain": True}))
    assert one.digest == other.digest == theirs.digest
    assert one.other_bytes == other.other_bytes == theirs.other_bytes
    values = dict(one.model.named_parameters())
    assert values.keys() == dict(theirs.model.named_parameters()).keys()
    for name, parameter in theirs.model.named_parameters():
        assert torch.equal(values[name], parameter), name
        assert torch.equal(other.segmented.weights.original(name, parameter), parameter), name
    assert one.model.config.to_diff_dict() == theirs.model.config.to_diff_dict()
    assert one.model.generation_config.to_dict() == theirs.model.generation_config.to_dict()
    assert torch.equal(one.segmented.output(text), theirs.segmented.output(text))
    assert torch.equal(other.segmented.output(text), theirs.segmented.output(text))


def test_refused_before_measuring(tiny_tokenizer: Any) -> None:
    import transformers

    with pytest.raises(ModelError, match="model type 'bert' cannot be written as GGUF yet, only llama"):
        for_engine(Subject.in_memory(tiny_encoder(), tiny_tokenizer), "llama.cpp")
    rope = {"rope_type": "linear", "factor": 2.0, "rope_theta": 10000.0}
    with pytest.raises(ModelError, match="positions scaled by 'linear'"):
        for_engine(Subject.in_memory(tiny_model(rope_parameters=rope), tiny_tokenizer), "llama.cpp")
    with pytest.raises(ModelError, match="weights of experts that do not add up to 1"):
        for_engine(Subject.in_memory(experts("Qwen3Moe"), tiny_tokenizer), "llama.cpp")
    with pytest.raises(ModelError, match="with biases"):
        for_engine(Subject.in_memory(tiny_model(attention_bias=True), tiny_tokenizer), "llama.cpp")
    narrow = for_engine(
        Subject.in_memory(tiny_model(hidden_size=48, intermediate_size=80, num_attention_heads=2), tiny_tokenizer),
        "llama.cpp",
    )
    with pytest.raises(InputError, match=r"the 48 inputs of 'model.embed_tokens' are no multiple of 32"):
        measure(narrow, tokens(2, 8), engine="llama.cpp")
    with pytest.raises(ModelError, match=r"has 512 tokens and the embedding 96 rows.*the model's own tokenizer"):
        for_engine(Subject.in_memory(tiny_model(vocab_size=96), tiny_tokenizer), "llama.cpp")
    unigram = transformers.PreTrainedTokenizerFast(tokenizer_object=_unigram())
    with pytest.raises(ModelError, match="is not a BPE"):
        for_engine(Subject.in_memory(tiny_model(), unigram), "llama.cpp")


def _unigram() -> Any:
    from tokenizers import Tokenizer, models

    return Tokenizer(models.Unigram([("a", -1.0), ("b", -2.0)], unk_id=0))


needs_llama_cpp = pytest.mark.skipif(
    importlib.util.find_spec("xllamacpp") is None, reason="needs llama.cpp: pip install --no-deps xllamacpp"
)


@needs_llama_cpp
def test_llama_cpp_computes_the_same(made: Subject, tmp_path: Path) -> None:
    """It rounds inputs of products to 8 bits, hence the tolerance; rows in a wrong order cost more than 0.1."""
    from scripts.llama_cpp_check import compare

    written(tmp_path, made, planned(made, 6.0))
    found = compare(tmp_path / FILE_NAME, made_up_text(60, seed=3), prefixes=4, length=64)
    assert found["same_tokens"]
    assert found["kl_max"] < 5e-3


@pytest.mark.slow
def test_smollm2_comes_back_in_the_same_bytes(smollm2: str, tmp_path: Path) -> None:
    """Dequantized, measured as floats, rounded to the types that it had: every tensor and all of the tokenizer (T9)."""
    subject = for_engine(Subject.of(load_model(smollm2)), "llama.cpp")
    assert subject.gguf is not None
    source = GGUFReader(subject.gguf)
    theirs = {tensor.name: tensor for tensor in source.tensors}
    names = architecture_of(subject.model).tensor_names(subject.model)
    codes = {}
    for site in subject.sites:
        fmt = GGUF_TYPES[theirs[names[site.name + ".weight"]].tensor_type.name]
        codes[site.name] = quantize(site_weight(subject.model, site), fmt, subject.storage_dtype)
    no_plan: Any = None
    writer = GGUFCheckpoint(tmp_path, subject, no_plan)
    for segment in subject.segmented.segments:
        writer.put(segment, {site.name: codes[site.name] for site in subject.sites if site.segment == segment})
    writer.close()
    written = GGUFReader(tmp_path / FILE_NAME)
    assert {tensor.name for tensor in written.tensors} == set(theirs)
    for tensor in written.tensors:
        assert tensor.tensor_type == theirs[tensor.name].tensor_type
        assert np.array_equal(tensor.data, theirs[tensor.name].data), tensor.name
    for key, field in source.fields.items():
        if not key.startswith("GGUF.") and key != "general.file_type":
            assert written.fields[key].contents() == field.contents(), key
