"""Weights on disk: the same numbers as in memory, one block at a time, and no silent use of what is not there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from natprec.errors import InputError, ModelError
from natprec.measurement import Measurement
from natprec.measurement.block_inputs import BlockInputs
from natprec.measurement.measure import measure
from natprec.measurement.subject import Subject
from natprec.models.loading import load_model
from natprec.models.weights import OnDisk
from tests.arrange import tokens
from tests.conftest import tiny_model
from tests.models.test_blocks import built
from tests.run_command import natprec


def saved(folder: Path, model: Any, tokenizer: Any, **options: Any) -> Path:
    model.save_pretrained(folder, **options)
    tokenizer.save_pretrained(folder)
    return folder


def opened(folder: Path, on_disk: bool = True) -> Subject:
    return Subject.of(load_model(str(folder), on_disk=on_disk))


def same(one: Measurement, other: Measurement) -> bool:
    """Bit by bit, spot checks too."""
    kinds = ("forward", "backward", "energy", "shares", "unquantized")
    assert one.curves.keys() == other.curves.keys()
    arrays = [(getattr(one.curves[n], k), getattr(other.curves[n], k)) for n in one.curves for k in kinds]
    return all(np.array_equal(a, b) for a, b in arrays) and one.header.checks == other.header.checks


@pytest.mark.parametrize("family", ["llama", "gpt-neox", "gpt2", "gemma3", "opt", "roberta", "modernbert"])
def test_the_same_measurement_from_disk(tmp_path: Path, tiny_tokenizer: Any, family: str) -> None:
    folder = saved(tmp_path / "m", built(family), tiny_tokenizer)
    whole, apart = opened(folder, on_disk=False), opened(folder)
    assert apart.digest == whole.digest
    assert apart.sites == whole.sites
    assert apart.gauges == whole.gauges
    assert apart.other_bytes == whole.other_bytes
    text = tokens(4, 12)
    measured = [measure(subject, text, group_size=16) for subject in (whole, apart)]
    assert same(*measured)
    assert not same(measured[0], measure(apart, text, group_size=16, seed=1)), "the comparison sees a difference"


@pytest.mark.parametrize("estimator", ["fisher", "exact"])
def test_one_block_at_a_time(
    tmp_path: Path, tiny_tokenizer: Any, monkeypatch: pytest.MonkeyPatch, estimator: str
) -> None:
    folder = saved(tmp_path / "m", tiny_model(num_hidden_layers=6, vocab_size=512), tiny_tokenizer)
    subject = opened(folder)
    block = sum(parameter.numel() for parameter in subject.segmented.blocks[0].parameters())
    outside = sum(parameter.numel() for parameter in subject.segmented._outside())
    most = 0
    values = OnDisk._values

    def counted(self: OnDisk, parameter: nn.Parameter) -> Any:
        nonlocal most
        value = values(self, parameter)
        held = sum(p.numel() for p in subject.model.parameters() if p.untyped_storage().nbytes() > 4)
        most = max(most, held + value.numel())
        return value

    monkeypatch.setattr(OnDisk, "_values", counted)
    measure(subject, tokens(2, 12), group_size=32, estimator=estimator)
    assert block <= most <= block + outside
    assert all(bool(parameter.isnan().all()) for parameter in subject.model.parameters()), "nothing stayed"


def test_what_is_not_held_is_not_a_number(tmp_path: Path, tiny_tokenizer: Any) -> None:
    subject = opened(saved(tmp_path / "m", tiny_model(), tiny_tokenizer))
    text = tokens(1, 5)
    assert subject.segmented.output(text).isfinite().all()
    assert subject.model(input_ids=text.ids).logits.isnan().all()


def test_a_sharded_checkpoint(tmp_path: Path, tiny_tokenizer: Any) -> None:
    model = tiny_model(num_hidden_layers=3)
    one = opened(saved(tmp_path / "one", model, tiny_tokenizer))
    many = opened(saved(tmp_path / "many", model, tiny_tokenizer, max_shard_size="100KB"))
    assert len(list((tmp_path / "many").glob("*.safetensors"))) > 2
    assert one.digest == many.digest
    text = tokens(1, 5)
    assert torch.equal(one.segmented.output(text), many.segmented.output(text))


@pytest.mark.parametrize("same", [True, False], ids=["the same twice", "two different"])
def test_a_head_stored_beside_the_embedding(tmp_path: Path, tiny_tokenizer: Any, same: bool) -> None:
    """The config says tied; as `from_pretrained` does, the files decide."""
    folder = saved(tmp_path / "m", tiny_model(), tiny_tokenizer)
    tensors = load_file(folder / "model.safetensors")
    head = tensors["model.embed_tokens.weight"].clone()
    tensors["lm_head.weight"] = head if same else head + 1
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    whole, apart = opened(folder, on_disk=False), opened(folder)
    assert apart.sites == whole.sites
    assert apart.digest == whole.digest
    assert (apart.sites[0].uses == ("model.embed_tokens", "lm_head")) is same


def test_a_shard_that_vanishes(tmp_path: Path, tiny_tokenizer: Any) -> None:
    folder = saved(tmp_path / "m", tiny_model(num_hidden_layers=3), tiny_tokenizer, max_shard_size="100KB")
    subject = opened(folder)
    for file in folder.glob("*.safetensors"):
        file.unlink()
    with pytest.raises(ModelError, match=r"cannot be read any more.*--resume"):
        subject.segmented.output(tokens(1, 5))


def test_damage_is_found_when_a_block_is_read(tmp_path: Path, tiny_tokenizer: Any) -> None:
    model = tiny_model()
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[0, :3] = torch.nan
    with pytest.raises(ModelError, match=r"layers\.1\.mlp\.up_proj\.weight.*3 values of 8192 that are NaN"):
        opened(saved(tmp_path / "m", model, tiny_tokenizer))


def test_a_gguf_file_of_another_architecture_is_unpacked_whole(smollm2: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("natprec.models.loading.is_known", lambda header: False)
    with pytest.raises(InputError, match="--weights memory"):
        load_model(smollm2, on_disk=True)


def test_block_inputs_on_disk(tmp_path: Path) -> None:
    stacks = BlockInputs(), BlockInputs(tmp_path)
    for index in range(3):
        for stack in stacks:
            stack.push(torch.full((2, 3), float(index), dtype=torch.bfloat16))
    for stack in stacks:
        assert [float(stack[index][1, 2]) for index in (0, 1, -1)] == [0, 1, 2]
        assert stack[0].dtype == torch.bfloat16
        stack.pop()
        assert len(stack) == 2
    assert list(tmp_path.iterdir()) == [], "files without a name: nothing is left, however the process ends"


def test_a_measurement_with_its_inputs_on_disk(
    tmp_path: Path, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    subject = opened(tiny_folder)
    text = tokens(4, 12)
    plain = measure(subject, text)
    monkeypatch.setattr("natprec.measurement.block_inputs.available_bytes", lambda: 0)
    assert same(plain, measure(subject, text, state_file=tmp_path / "state"))


def test_on_the_command_line(
    tmp_path: Path, tiny_folder: Path, text_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = ["--model", tiny_folder, "--tokens", "256", "--sequence-length", "64"]
    refused = natprec("measure", *options, "--out", tmp_path / "m", "--weights", "disk")
    assert refused.code == 2
    assert "give text with --data" in refused.err
    monkeypatch.setattr("natprec.models.devices.available_bytes", lambda: 1000)
    done = natprec("measure", *options, "--out", tmp_path / "m", "--data", text_file)
    assert done.code == 0
    assert "weights stay on disk" in done.err
