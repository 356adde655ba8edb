"""Decode writes what `natprec generate` writes, from one prompt's cache again and again; what moves is counted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from natprec.energy.costs import Products, jobs_of
from natprec.energy.footprint import footprint
from natprec.energy.opening import open_model, stored_footprint
from natprec.energy.work import Decode, Prefill, Shape, bits_of_choice, fitting, prompts, renewed
from natprec.errors import InputError
from natprec.formats import integer
from natprec.models.experts import take_apart
from natprec.runtime.generate import generate, prompt_ids
from natprec.runtime.load import Runnable, load
from natprec.tasks import CAUSAL
from natprec.timing.products import copies, on_chip_bytes, stored_weight
from tests.arrange import experts, subject
from tests.conftest import tiny_model
from tests.runtime.test_load import written


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer: Any) -> Path:
    made = subject(tiny_tokenizer, vocab_size=512, max_position_embeddings=64)
    return written(tmp_path_factory.mktemp("work") / "out", made, integer(4, 32), "natprec")


def tokens_of(work: Decode) -> list[list[int]]:
    """What a cycle writes, by step: taken from the model's answers."""
    found: list[list[int]] = []
    inner = work.runnable

    class Seen(type(inner)):  # type: ignore[misc]
        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            output = inner(*args, **kwargs)
            found.append(output.logits[:, -1].argmax(-1).tolist())
            return output

    work.runnable = Seen(inner.model, inner.tokenizer, inner.kernels, inner.task, inner.device)
    counted = sum(work.cycle())
    work.runnable = inner
    assert counted == sum(map(len, found))
    return found


def test_a_cycle_writes_what_generate_writes_each_time(folder: Path) -> None:
    runnable = load(folder)
    runnable.model.generation_config.eos_token_id = []
    expected = list(generate(runnable, "some words", max_new_tokens=20, greedy=True).tokens)
    work = Decode(runnable, torch.tensor([prompt_ids(runnable, "some words")]), 20)
    for _ in range(3):
        assert [*work.first, *(tokens[0] for tokens in tokens_of(work))] == expected


@pytest.mark.parametrize("batch", [1, 3])
def test_a_model_of_transformers_too(batch: int) -> None:
    model = tiny_model()
    runnable = Runnable(model, None, {}, CAUSAL, torch.device("cpu"))
    ids = prompts(runnable, Shape(batch, 7, 9), seed=1)
    expected = model.generate(ids, do_sample=False, max_new_tokens=9, eos_token_id=None)[:, 7:]
    work = Decode(runnable, ids, 9)
    for _ in range(2):
        steps = [work.first, *tokens_of(work)]
        assert torch.equal(torch.tensor(steps).T, expected)
    assert sum(Prefill(runnable, ids).cycle()) == batch * 7


def test_a_cache_that_is_not_known_is_copied_whole() -> None:
    from transformers.cache_utils import DynamicCache, DynamicLayer

    class Other(DynamicLayer):
        pass

    cache = DynamicCache()
    cache.layers = [Other(), DynamicLayer()]
    for layer in cache.layers:
        layer.update(torch.zeros(1, 1, 2, 4), torch.zeros(1, 1, 2, 4))
    made = renewed(cache)
    assert made.layers[0].keys is not cache.layers[0].keys
    assert made.layers[1].keys is cache.layers[1].keys
    made.layers[1].update(torch.zeros(1, 1, 1, 4), torch.zeros(1, 1, 1, 4))
    assert (cache.layers[1].get_seq_length(), made.layers[1].get_seq_length()) == (2, 3)


def test_what_the_context_leaves(folder: Path) -> None:
    runnable = load(folder)
    assert fitting(runnable, None, None) == (32, 32)
    assert fitting(runnable, 10, None) == (10, 54)
    assert fitting(runnable, None, 4) == (60, 4)
    assert fitting(runnable, 10, 4) == (10, 4)
    with pytest.raises(InputError, match="prompt-tokens 62 and new-tokens 4 exceed the context of this model, 64"):
        fitting(runnable, 62, 4)


def test_an_even_choice_has_the_bits_of_the_vocabulary() -> None:
    model = tiny_model()
    model.lm_head.weight = torch.nn.Parameter(torch.zeros_like(model.lm_head.weight))
    runnable = Runnable(model, None, {}, CAUSAL, torch.device("cpu"))
    assert bits_of_choice(runnable, 0, tokens=4) == pytest.approx(9.0, abs=1e-4)


def test_weights_that_multiply_are_counted_once(folder: Path) -> None:
    """A tied head is read whole, an embedding that is only looked up is not; codes take their bits."""
    model = tiny_model()
    cpu = torch.device("cpu")
    own = footprint(model, cpu, 4.0)
    linears = sum(each.weight.numel() for each in model.modules() if isinstance(each, torch.nn.Linear))
    assert (own.weights, own.weight_bytes) == (linears, 4 * linears)
    untied = footprint(tiny_model(tie_word_embeddings=False), cpu, None)
    assert untied.weight_bytes == own.weight_bytes
    assert own.step_bytes(3, 10) == own.weight_bytes + 3 * 10 * 4.0
    runnable = load(folder)
    codes = footprint(runnable.model, cpu, None)
    dense = footprint(subject(vocab_size=512).model, cpu, None)
    assert codes.weights == dense.weights
    assert 4 * codes.weights / 8 < codes.weight_bytes < 8 * codes.weights / 8


def test_of_experts_those_that_a_token_takes(tmp_path: Path) -> None:
    model = experts()
    take_apart(model)
    own = footprint(model, torch.device("cpu"), None)
    linears = {name: each.weight.numel() for name, each in model.named_modules() if isinstance(each, torch.nn.Linear)}
    routed = sum(count for name, count in linears.items() if ".experts." in name)
    assert routed
    assert own.weights == sum(linears.values()) - routed / 2, "2 of 4"


def test_a_folder_that_another_runs(tiny_folder: Path) -> None:
    found = stored_footprint(str(tiny_folder))
    assert found is not None
    own = footprint(open_model(str(tiny_folder), "cpu", False).runnable.model, torch.device("cpu"), None)
    embedding = 512 * 64
    assert found.weight_bytes == 4 * ((own.weights or 0) - embedding), "float32 on disk, tied"
    assert stored_footprint("meta/some-model") is None


def test_caches_are_counted_once(tmp_path: Path) -> None:
    for cpu, index, level, kind, size, users in (
        (0, 0, 1, "Data", "32K", "0"), (0, 1, 1, "Instruction", "32K", "0"), (0, 3, 3, "Unified", "32M", "0-1"),
        (1, 0, 1, "Data", "32K", "1"), (1, 3, 3, "Unified", "32M", "0-1"),
    ):  # fmt: skip
        place = tmp_path / f"cpu{cpu}" / "cache" / f"index{index}"
        place.mkdir(parents=True)
        for name, value in (("level", level), ("type", kind), ("size", size), ("shared_cpu_list", users)):
            (place / name).write_text(f"{value}\n")
    assert on_chip_bytes(torch.device("cpu"), tmp_path) == 2 * 32 * 1024 + 32 * 1024**2
    assert on_chip_bytes(torch.device("cpu"), tmp_path / "nothing") == 0


def test_products_of_a_model_in_each_format(tiny_folder: Path) -> None:
    """Each shape of its Linears at 16 bits and from 2 to 8; each runs, on more copies than a cache holds."""
    jobs = jobs_of(open_model(str(tiny_folder), "cpu", False))
    shapes = {(job.rows, job.columns) for job in jobs}
    assert shapes == {(64, 64), (32, 64), (128, 64), (64, 128), (512, 64)}
    assert len(jobs) == len(shapes) * 8 == len(set(jobs))
    x = torch.randn(3, 64)
    for job in jobs:
        if (job.rows, job.columns) == (32, 64):
            made = copies(stored_weight(job, torch.device("cpu")), torch.device("cpu"))
            work = Products(made[:2], x)
            assert sum(work.cycle()) == 20
            assert made[0](x).shape == (3, 32)
            assert torch.equal(made[0](x), made[1](x))
