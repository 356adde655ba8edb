"""A rotated model through all steps: measured, planned, rounded and written as such, judged beside the original."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import natprec
from natprec import errors
from natprec.config import QuantizeConfig
from natprec.evaluation.verification import Verification
from natprec.evaluation.verify import verify
from natprec.measurement import Measurement
from natprec.models.headers import read_stored
from natprec.pipeline import quantize as pipeline
from natprec.pipeline.request import open_subject
from natprec.solver import Plan
from natprec.tasks import Samples
from natprec.transforms import rotated_digest
from natprec.utils.progress import Stages
from tests.arrange import tokens
from tests.conftest import VOCABULARY, tiny_model
from tests.run_command import SMALL, left_behind
from tests.run_command import natprec as command

QUIET = Stages(quiet=True)


@pytest.fixture(scope="module")
def untied(tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer: Any) -> Path:
    """A saved llama of its own head, whose norms are uneven and whose weights predict something."""
    folder = tmp_path_factory.mktemp("models") / "untied"
    model = tiny_model(tie_word_embeddings=False)
    draw = torch.Generator().manual_seed(3)
    for name, parameter in model.named_parameters():
        parameter.data *= 1 if "norm" in name else 4
        if "norm" in name:
            parameter.data += 0.3 * torch.randn(parameter.shape, generator=draw)
    model.save_pretrained(folder)
    tiny_tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def request_(untied: Path, text_file: Path) -> QuantizeConfig:
    return QuantizeConfig(
        str(untied), eps=1e-3, data=str(text_file), tokens=512, eval_tokens=512, length=64, group_size=32,
        transforms="rotate", seed=2,
    )  # fmt: skip


def test_the_whole_flow(request_: QuantizeConfig, untied: Path, text_file: Path, tmp_path: Path) -> None:
    """What `natprec verify` finds beside the original is what `quantize` found beside the rotated one."""
    out = tmp_path / "out"
    measurement, plan, found = pipeline.quantize(request_, out)
    assert found.passed
    original = open_subject(replace(request_, transforms="auto"), QUIET)
    assert (measurement.header.transforms, measurement.header.rotation, plan.rotation) == ("rotate", 2, 2)
    assert plan.model_digest == rotated_digest(original.digest, 2) != original.digest
    verified = command("verify", out, "--model", untied, "--eval-data", text_file, "--eval-tokens", 512,
                       "--sequence-length", 64, "--seed", 2)  # fmt: skip
    assert verified.code == 0, verified.err
    again = Verification.load(out / "verification.json")
    assert again.data_digest == found.data_digest
    assert again.kl_mean == pytest.approx(found.kl_mean, rel=1e-3)
    assert (read_stored(out / "model.safetensors", "model.norm.weight") == 1).all()


def test_apply_rotates_as_the_plan_says(
    request_: QuantizeConfig, untied: Path, text_file: Path, tmp_path: Path
) -> None:
    """Whatever its own seed is, which the text follows: GPTQ's text is the same here, since it comes from a file."""
    file = tmp_path / "m"
    measured = command("measure", "--model", untied, "--data", text_file, "--out", file, "--transforms", "rotate",
                       "--seed", 5, *SMALL, "--rounding", "rtn")  # fmt: skip
    assert measured.code == 0, measured.err
    assert "rotated the residual stream of 64" in measured.err
    plan = Measurement.load(file).solve(bits=5.0)
    plan.save(tmp_path / "plan.json")
    applied = command("apply", tmp_path / "plan.json", "--model", untied, "--out", tmp_path / "out")
    assert applied.code == 0, applied.err
    assert "rotated the residual stream of 64" in applied.err
    ids = torch.randint(VOCABULARY, (4, 64), generator=torch.Generator().manual_seed(1))
    original = open_subject(replace(request_, transforms="auto"), QUIET)
    found = verify(tmp_path / "out", original, Samples.text(ids), plan, rounding="rtn", data="ids", stages=QUIET)
    assert found.kl_mean < 3 * plan.kl_predicted

    plain = json.loads((tmp_path / "plan.json").read_text())
    del plain["checksum"]
    (tmp_path / "plain.json").write_text(json.dumps({**plain, "rotation": None}))
    refused = command("apply", tmp_path / "plain.json", "--model", untied, "--out", tmp_path / "other")
    assert refused.code == 2
    assert "the plan is of" in refused.reason
    (tmp_path / "seed.json").write_text(json.dumps({**plain, "rotation": 6}))
    assert command("apply", tmp_path / "seed.json", "--model", untied, "--out", tmp_path / "other").code == 2


def test_resume_notices_a_rotation(request_: QuantizeConfig, tmp_path: Path) -> None:
    with pytest.raises(errors.BudgetError):
        pipeline.quantize(replace(request_, eps=1e-12), tmp_path / "out")
    for change in ({"transforms": "auto"}, {"seed": 3}):
        with pytest.raises(errors.InputError, match="cannot resume from"):
            pipeline.quantize(replace(request_, **change), tmp_path / "out", resume=True)
    _, plan, _ = pipeline.quantize(request_, tmp_path / "out", resume=True)
    assert plan.rotation == 2
    assert left_behind(tmp_path) == ["out"]


def test_weights_on_disk_are_refused(request_: QuantizeConfig) -> None:
    with pytest.raises(errors.InputError, match=r"'rotate': rotating .* use --weights memory, or measure with"):
        open_subject(replace(request_, weights="disk"), QUIET)


def test_inspect_shows_the_rotated_model(request_: QuantizeConfig, untied: Path, tmp_path: Path) -> None:
    _, plan, _ = pipeline.quantize(replace(request_, rounding="rtn"), tmp_path / "out")
    plan.save(tmp_path / "plan.json")
    shown = command("inspect", "--plan", tmp_path / "plan.json", "--model", untied, "--data", request_.data, *SMALL)
    assert shown.code == 0, shown.err
    assert "rotated the residual stream" in shown.err


def test_in_memory_the_model_stays_as_it_was(tmp_path: Path) -> None:
    model = tiny_model(tie_word_embeddings=False)
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    ids = torch.randint(VOCABULARY, (8, 32), generator=torch.Generator().manual_seed(0))
    measurement = natprec.measure(model, None, ids, group_size=32, transforms="rotate", rounding="rtn", seed=4)
    plan = measurement.solve(bits=6.0)
    assert plan.rotation == 4
    quantized = plan.apply(model, None, rounding="rtn")
    assert all(torch.equal(parameter, before[name]) for name, parameter in model.named_parameters())
    assert (quantized.subject.rotation, quantized.subject.digest) == (4, plan.model_digest)
    natprec.save(quantized, tmp_path / "out")
    assert natprec.verify(tmp_path / "out", model, ids).kl_mean < 3 * plan.kl_predicted
    with pytest.raises(errors.InputError, match="weights"):
        replace(plan, rotation=None).apply(model, None, rounding="rtn")


def test_a_measurement_must_be_of_a_rotated_subject(request_: QuantizeConfig) -> None:
    from natprec.measurement.measure import measure

    plain = open_subject(replace(request_, transforms="auto"), QUIET)
    with pytest.raises(errors.InputError, match="was not rotated"):
        measure(plain, tokens(4, 8), group_size=32, transforms="rotate")


def test_a_plan_of_before_is_read(tmp_path: Path, request_: QuantizeConfig) -> None:
    """Written by a natprec that knew no rotations."""
    _, plan, _ = pipeline.quantize(replace(request_, rounding="rtn", transforms="auto"), tmp_path / "out")
    value = plan.to_json()
    del value["rotation"]
    (tmp_path / "plan.json").write_text(json.dumps(value))
    assert Plan.load(tmp_path / "plan.json").rotation is None


@pytest.mark.parametrize("engine", ["transformers", "natprec", "llama.cpp"])
def test_other_engines(request_: QuantizeConfig, tmp_path: Path, engine: str) -> None:
    asked = replace(request_, engine=engine, rounding="rtn", eps=None, bits=6.0)
    _, plan, found = pipeline.quantize(asked, tmp_path / "out")
    assert plan.rotation == 2
    assert found.kl_mean < 3 * plan.kl_predicted
