"""The notebook's steps: the package's docstring, word for word, and the same plan as the command line."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch

import natprec
from natprec.data.windows import load_tokens
from natprec.pipeline.held_out import part_of
from natprec.tasks import Samples
from tests.conftest import made_up_text, tiny_model
from tests.run_command import SMALL
from tests.run_command import natprec as command

SIZES = {"tokens": 512, "length": 64}


@pytest.fixture
def here(tmp_path: Path, text_file: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("text.txt").write_text(text_file.read_text())
    Path("held-out.txt").write_text(made_up_text(30_000, seed=7))
    return tmp_path


def test_the_docstring_runs(here: Path, tiny_tokenizer: Any) -> None:
    lines = [line for line in (natprec.__doc__ or "").splitlines() if line.startswith("    ")]
    code = "\n".join(line.strip() for line in lines)
    assert code.startswith("import natprec")
    model = tiny_model()
    names: dict[str, Any] = {"model": model, "tokenizer": tiny_tokenizer}
    before = copy.deepcopy(model.state_dict())
    exec(code, names)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items()), "left as it was"
    assert names["plan"].eps == 0.01
    verification = json.loads(Path("out/verification.json").read_text())
    assert verification["passed"] is True
    ids = torch.arange(8).unsqueeze(0)
    assert names["q"](input_ids=ids).logits.shape == (1, 8, model.config.vocab_size)


def test_the_same_plan_and_verdict_as_the_command_line(here: Path, tiny_folder: Path, tiny_tokenizer: Any) -> None:
    from transformers import AutoModelForCausalLM

    result = command("measure", "--model", tiny_folder, "--data", "text.txt", *SMALL, "--out", "m")
    assert result.code == 0, result.err
    theirs = natprec.Measurement.load(Path("m")).solve(eps=2e-4)
    model = AutoModelForCausalLM.from_pretrained(tiny_folder, dtype=torch.float32)
    measurement = natprec.measure(model, tiny_tokenizer, "text.txt", group_size=32, **SIZES)
    plan = measurement.solve(eps=2e-4)
    assert plan.sites == theirs.sites
    assert (plan.model_digest, plan.kl_predicted) == (theirs.model_digest, theirs.kl_predicted)
    natprec.save(plan.apply(model, tiny_tokenizer, "text.txt", **SIZES), "out")
    ours = natprec.verify("out", model, "text.txt", **SIZES)
    result = command(
        "verify", "out", "--model", tiny_folder, "--eval-data", "text.txt", "--eval-tokens", 512,
        "--sequence-length", 64, "--json",
    )  # fmt: skip
    assert json.loads(result.out)["kl_mean"] == pytest.approx(ours.kl_mean, rel=1e-6)
    assert json.loads(result.out)["data_digest"] == ours.data_digest


def test_measuring_and_judging_on_one_text_take_different_parts(here: Path, tiny_tokenizer: Any) -> None:
    def windows(split: Any, sequences: int) -> torch.Tensor:
        return load_tokens(tiny_tokenizer, "text.txt", sequences=sequences, length=64, split=split, shared=True)

    # half of what is measured on is the text, the other half is the model's own
    measured, judged = windows("calibration", 4), part_of(Samples.text(windows("held-out", 16)), 0, 8).ids
    assert not {tuple(row) for row in measured.tolist()} & {tuple(row) for row in judged.tolist()}
    model = tiny_model()
    measurement = natprec.measure(model, tiny_tokenizer, "text.txt", group_size=32, **SIZES)
    plan = measurement.solve(eps=2e-4)
    natprec.save(plan.apply(model, rounding="rtn"), "out")
    with pytest.raises(natprec.InputError, match="has no tokenizer"):
        natprec.verify("out", model, "text.txt", **SIZES)
    verification = natprec.verify("out", model, "text.txt", tiny_tokenizer, **SIZES)
    own = load_tokens(tiny_tokenizer, None, sequences=4, length=64, split="calibration", model=model)
    assert measurement.header.data_digest == Samples.text(torch.cat([measured, own])).digest
    assert verification.data_digest == Samples.text(judged).digest


def test_token_ids_are_taken_as_they_are(here: Path, tiny_tokenizer: Any) -> None:
    model = tiny_model()
    ids = torch.randint(512, (4, 32), generator=torch.Generator().manual_seed(0))
    measurement = natprec.measure(model, None, ids, group_size=32)
    assert (measurement.header.sequences, measurement.header.length) == (4, 32)
    plan = measurement.solve(bits=4.5)
    quantized = natprec.apply(plan, model, rounding="rtn")
    natprec.save(quantized, "out")
    verification = natprec.verify("out", model, ids)
    assert verification.tokens == 128
    assert verification.passed is None
    with pytest.raises(natprec.OutputError, match="exists"):
        natprec.save(quantized, "out")
    natprec.save(quantized, "out", overwrite=True)


def test_another_model_or_too_long_sequences_are_refused(here: Path, tiny_tokenizer: Any) -> None:
    model = tiny_model()
    plan = natprec.measure(model, tiny_tokenizer, "text.txt", group_size=32, **SIZES).solve(eps=1e-3)
    with torch.no_grad():
        model.lm_head.weight += 1
    with pytest.raises(natprec.InputError, match="the plan is of"):
        plan.apply(model, rounding="rtn")
    with pytest.raises(natprec.InputError, match="513 is more than the 512 positions"):
        natprec.measure(model, tiny_tokenizer, "text.txt", tokens=513, length=513, group_size=32)
    with pytest.raises(natprec.InputError, match="estimator"):
        natprec.measure(model, tiny_tokenizer, "text.txt", group_size=32, estimator="fischer", **SIZES)
