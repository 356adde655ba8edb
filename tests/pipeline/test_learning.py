"""Learning as a step of a run: its text, what it is resumed from, and the options that ask for it."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from natprec.config import QuantizeConfig
from natprec.data.seen import pieces_of
from natprec.measurement.measure import measure
from natprec.measurement.subject import Subject
from natprec.models.weights import present_values
from natprec.pipeline import learning_text as module
from natprec.pipeline import rounded
from natprec.pipeline.api import apply
from natprec.pipeline.learning import UNBOUNDED, Learning, learning_asked
from natprec.pipeline.learning_text import LearningText, learning_text
from natprec.pipeline.resume import LEARNING, forget
from natprec.pipeline.samples import calibration_samples
from natprec.rounding import learnable as rates
from natprec.rounding.teacher import HeldBack
from natprec.solver import Plan
from natprec.tasks import Samples
from natprec.utils.progress import Stages
from tests.arrange import snapshot
from tests.conftest import tiny_encoder, tiny_model
from tests.run_command import SMALL, left_behind, natprec

QUIET = Stages(quiet=True)


@pytest.fixture
def config(tiny_folder: Path, text_file: Path) -> QuantizeConfig:
    return QuantizeConfig(
        str(tiny_folder), bits=3.6, data=str(text_file), tokens=512, length=64, group_size=32, learn_tokens=16 * 1024
    )


@pytest.fixture
def made(tiny_tokenizer: Any) -> Subject:
    model = tiny_model()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(4)  # else it predicts nothing
    return Subject.in_memory(model, tiny_tokenizer, "tiny")


def text_of(config: QuantizeConfig, made: Subject) -> LearningText:
    samples = calibration_samples(config, made, QUIET)
    return replace(learning_text(config, made, samples, QUIET), weights=present_values(made.model))


def rows(samples: Samples) -> set[tuple[int, ...]]:
    return {tuple(row) for row in samples.ids.tolist()}


def test_each_step_has_other_text_that_nothing_was_measured_on(config: QuantizeConfig, made: Subject) -> None:
    text = text_of(config, made)
    measured = pieces_of(calibration_samples(config, made, QUIET))
    batches = [text.batch(step) for step in range(12)]
    assert {batch.tokens for batch in batches} == {text.step_tokens} == {1024}
    seen = [row for batch in batches for row in rows(batch)]
    assert len(set(seen)) == len(seen) == 12 * 16
    assert not set(seen) & rows(text.judging)
    assert not set(pieces_of(batches[0])) & set(measured)
    assert set(pieces_of(text.read)) < set(text.pieces), "those that judge are known too"


def test_a_step_is_the_same_whenever_it_is_asked_for(config: QuantizeConfig, made: Subject) -> None:
    text = text_of(config, made)
    forwards = [text.batch(step).ids for step in range(6)]
    again = text_of(config, made)
    for step in (5, 0, 3):
        assert torch.equal(again.batch(step).ids, forwards[step])
    other = text_of(replace(config, seed=1), made)
    assert not torch.equal(other.batch(0).ids, forwards[0])


def test_the_model_writes_an_eighth_and_later_most(config: QuantizeConfig, made: Subject) -> None:
    text = text_of(config, made)
    text.read = text.read[: 7 * 16]
    read = rows(text.read)
    written = [sum(tuple(row) not in read for row in text.batch(step).ids.tolist()) for step in range(12)]
    assert written == [2] * 8 + [12] * 4
    first = [tuple(row) for step in range(8) for row in text.batch(step).ids.tolist()]
    assert set(first) >= read, "each was read once before any is read again"


def test_the_original_writes_while_the_model_holds_others(config: QuantizeConfig, made: Subject) -> None:
    text = text_of(config, made)
    before = text.batch(0).ids
    again = text_of(config, made)
    for parameter in made.model.parameters():
        parameter.data = torch.zeros_like(parameter)
    assert torch.equal(again.batch(0).ids, before)


def test_given_tokens_and_what_the_model_writes_are_all(made: Subject) -> None:
    given = Samples.text(torch.randint(96, (16, 32), generator=torch.Generator().manual_seed(0)))
    text = learning_text(QuantizeConfig("", length=32), made, given, QUIET, more=False)
    text.weights = present_values(made.model)
    found = [tuple(row) for step in range(4) for row in text.batch(step).ids.tolist()]
    assert sum(row in rows(given) for row in found) == len(found) // 4
    assert len(rows(text.judging) & rows(given)) == 2


def test_an_encoder_reads_its_text_again(encoder_tokenizer: Any) -> None:
    made = Subject.in_memory(tiny_encoder(), encoder_tokenizer, "small")
    given = Samples.text(torch.randint(2, 90, (16, 32), generator=torch.Generator().manual_seed(0)))
    text = learning_text(QuantizeConfig("", length=32), made, given, QUIET, more=False)
    assert rows(text.batch(0)) == rows(text.read)
    assert not rows(text.read) & rows(text.judging)


def planned(config: QuantizeConfig, made: Subject) -> tuple[Plan, Samples]:
    samples = calibration_samples(config, made, QUIET)
    return measure(made, samples, group_size=32).solve(bits=config.bits), samples


def test_a_killed_run_rounds_no_second_time(
    config: QuantizeConfig, made: Subject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan, samples = planned(config, made)
    original = snapshot(made.model)

    def run(learning: Learning | None) -> dict[str, Any]:
        with made.segmented.weights.hold(made.model.parameters()):
            return rounded.round_to_plan(made, plan, samples, "gptq", QUIET, learning)

    learning = learning_asked(config, made, samples, QUIET, tmp_path)
    assert learning is not None
    whole = run(replace(learning, folder=None))
    batch = LearningText.batch

    def killed(self: LearningText, step: int) -> Samples:
        if step == 9:
            raise KeyboardInterrupt
        return batch(self, step)

    monkeypatch.setattr(LearningText, "batch", killed)
    with pytest.raises(KeyboardInterrupt):
        run(learning)
    assert all(torch.equal(original[name], value) for name, value in snapshot(made.model).items())
    monkeypatch.setattr(LearningText, "batch", batch)
    monkeypatch.setattr(rounded, "_rounded", lambda *_: pytest.fail("it was rounded before"))
    resumed = run(learning)
    for name, codes in whole.items():
        assert torch.equal(codes.codes, resumed[name].codes)
        assert torch.equal(codes.scale, resumed[name].scale)
    assert len(list(tmp_path.glob(LEARNING))) == 1
    forget(tmp_path)
    assert not tmp_path.exists()


def test_what_was_learned_is_nearer_than_the_rounding(config: QuantizeConfig, made: Subject) -> None:
    plan, samples = planned(config, made)
    others = Samples.text(torch.randint(96, (16, 64), generator=torch.Generator().manual_seed(9)))
    expected = made.segmented.output(others)
    cost = {}
    for name, learns in (("gptq", None), ("to the end", learning_asked(config, made, samples, QUIET))):
        with made.segmented.weights.hold(made.model.parameters()):
            rounded.round_to_plan(made, plan, samples, "gptq", QUIET, learns)
            cost[name] = float(made.distortion.between(expected, made.segmented.output(others), others).mean())
    assert cost["to the end"] < cost["gptq"]


def test_the_notebook_learns_from_tokens(made: Subject, tiny_tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rates, "SCALES", 0.05)  # far enough in so few steps
    falling = iter(range(99, 0, -1))
    monkeypatch.setattr(HeldBack, "distortion", lambda self: float(next(falling)))
    model = copy.deepcopy(made.model)
    config = QuantizeConfig("", tokens=512, length=64, bits=3.6)
    plan, samples = planned(config, made)
    plain = apply(plan, model, tiny_tokenizer, samples.ids)
    learned = apply(plan, model, tiny_tokenizer, samples.ids, learn_tokens=4096)
    assert any(not torch.equal(plain.codes[name].scale, learned.codes[name].scale) for name in plain.codes)


def test_what_the_options_ask_for(config: QuantizeConfig, made: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        module, "written", lambda subject, count, length, seed: Samples.text(torch.zeros(count, length).long())
    )
    samples = calibration_samples(config, made, QUIET)
    assert learning_asked(replace(config, learn_tokens=0), made, samples, QUIET) is None
    bounded = learning_asked(replace(config, time=2.0), made, samples, QUIET)
    alone = learning_asked(replace(config, time=2.0, learn_tokens=0), made, samples, QUIET)
    assert bounded is not None
    assert alone is not None
    assert (bounded.tokens, bounded.minutes, bounded.budget.steps) == (16 * 1024, 2.0, 16)
    assert (alone.tokens, alone.minutes) == (UNBOUNDED, 2.0)


def test_the_command_line_learns_and_leaves_nothing_beside_the_checkpoint(
    tiny_folder: Path, text_file: Path, tmp_path: Path
) -> None:
    result = natprec(
        "quantize", "--model", tiny_folder, "--data", text_file, *SMALL, "--bits", 3.6, "--eval-tokens", 256,
        "--learn-tokens", 2048, "--time", 60, "--out", tmp_path / "out",
    )  # fmt: skip
    assert result.code == 0, result.err
    assert "learned from 2048 tokens in " in result.err
    assert left_behind(tmp_path) == ["out"]
