"""What a task says holds together: the distortion that suits it reads what its models put out."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from natprec.distortions import named
from natprec.models.trust import unfilled_model
from natprec.tasks import CAUSAL, ENCODER, Task
from tests.conftest import tiny_config, tiny_encoder, tiny_model


@pytest.mark.parametrize(("task", "config"), [(CAUSAL, tiny_config), (ENCODER, lambda: tiny_encoder().config)])
def test_its_class_makes_a_model_whose_output_its_distortion_reads(task: Task, config: Any) -> None:
    model, ids = unfilled_model(config(), task, trust=False).eval(), torch.zeros(2, 4, dtype=torch.int64)
    distortion = named(task.distortion)
    assert distortion.predicts == task.predicts
    assert distortion.output(model, ids).shape[:2] == (2, distortion.terms(4))
    assert task.inputs(ids)["input_ids"] is ids


def test_a_language_model_keeps_nothing_while_it_is_measured() -> None:
    ids = torch.zeros(1, 4, dtype=torch.int64)
    assert tiny_model()(**CAUSAL.inputs(ids)).past_key_values is None
