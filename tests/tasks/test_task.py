"""What a task says holds together: the distortion that suits it reads what its models put out."""

from __future__ import annotations

from typing import Any

import pytest

from natprec.data.readers import READERS
from natprec.distortions import named
from natprec.evaluation.verification import Verification
from natprec.models.trust import unfilled_model
from natprec.tasks import CAUSAL, ENCODER, Task
from tests.arrange import tokens
from tests.conftest import tiny_config, tiny_encoder, tiny_model

TASKS = [(CAUSAL, tiny_config), (ENCODER, lambda: tiny_encoder().config)]


@pytest.mark.parametrize(("task", "config"), TASKS)
def test_its_class_makes_a_model_whose_output_its_distortion_reads(task: Task, config: Any) -> None:
    model, distortion = unfilled_model(config(), task, trust=False).eval(), named(task.distortion)
    assert distortion.task is task
    for samples in (task.made_up(model, 2, 4), task.probe(model)):
        output = distortion.output(model, samples)
        assert output.shape[:2] == (len(samples), distortion.terms(samples.length))
        for metric in task.metrics:
            assert len(metric.values(output, output, samples)) == len(samples)
            assert metric.name in Verification.__dataclass_fields__
    assert task.inputs(samples)["input_ids"] is samples.ids
    assert task.reader in READERS


@pytest.mark.parametrize(("task", "config"), TASKS)
def test_random_samples_are_the_same_again_and_others_for_another_seed(task: Task, config: Any) -> None:
    model = unfilled_model(config(), task, trust=False)
    first, again, other = (task.made_up(model, 4, 16, seed).digest for seed in (1, 1, 2))
    assert first == again != other


def test_a_language_model_keeps_nothing_while_it_is_measured() -> None:
    assert CAUSAL.forward(tiny_model(), tokens(1, 4)).past_key_values is None
