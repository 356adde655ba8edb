"""What options mean where `--model` is a pipeline of diffusers, and opening the part of it that is quantized."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING

from natprec.config import OPTIONS, QuantizeConfig
from natprec.data.prompts import asked_of
from natprec.errors import InputError
from natprec.models.pipelines import PipelineFolder, refuse_component
from natprec.models.places import local_path

if TYPE_CHECKING:
    from natprec.measurement.subject import Subject
    from natprec.utils.progress import Stages

ENGINES = ("diffusers", "natprec")
"""That a part of a pipeline can be written for; the first is taken unless another is asked for."""

NOT_OF_PARTS = ("data", "text_column", "images", "activations", "kv", "learn_tokens", "time", "gpu", "minimize")
"""Options that a part of a pipeline has no use for."""


def pipeline_of(config: QuantizeConfig) -> PipelineFolder | None:
    """The pipeline that the options are about; None: it is a model, or on the hub."""
    return PipelineFolder.found(local_path(config.model)) if config.model else None


def refuse_pipeline(config: QuantizeConfig) -> bool:
    """Refuse options that do not suit a pipeline, or a part of one; torch is not needed.

    Returns:
        Whether the model is a pipeline, so that nothing else is to be looked at.
    Raises:
        InputError, ModelError: says what and why.
    """
    place = local_path(config.model) if config.model else None
    pipeline = refuse_component(place, config.model, config.component)
    if pipeline is None:
        for name in ("prompts", "steps", "image_size"):
            if getattr(config, name) is not None:
                flag = OPTIONS[name].flag
                raise InputError(
                    f"{flag.removeprefix('--')} {getattr(config, name)!r}: {config.model!r} is no pipeline of "
                    f"diffusers; leave out {flag}"
                )
        return False
    defaults = {each.name: each.default for each in fields(QuantizeConfig)}
    for name in NOT_OF_PARTS:
        value = getattr(config, name)
        if value != defaults[name]:
            instead = ": prompts are given with --prompts" if name == "data" else ""
            flag = OPTIONS[name].flag
            raise InputError(
                f"{flag.removeprefix('--')} {value!r} is not for parts of a pipeline{instead}; leave out {flag}"
            )
    settled(config)
    assert config.component is not None
    pipeline.weight_files(config.component)
    asked_of(pipeline, config.prompts)
    if config.eval_data is not None:
        asked_of(pipeline, config.eval_data)
    return True


def settled(config: QuantizeConfig) -> QuantizeConfig:
    """The options of a run on a pipeline, with an engine that a part of one can be written for.

    Raises:
        InputError: another engine was asked for.
    """
    if pipeline_of(config) is None or config.engine in ENGINES:
        return config
    if config.engine != QuantizeConfig.__dataclass_fields__["engine"].default:
        raise InputError(
            f"engine {config.engine!r} runs no parts of a pipeline of diffusers; use --engine {' or '.join(ENGINES)}"
        )
    return replace(config, engine=ENGINES[0])


def open_component(config: QuantizeConfig) -> Subject:
    """The part of a pipeline that the options name.

    Raises:
        InputError, ModelError: it cannot be used.
    """
    pipeline = pipeline_of(config)
    assert pipeline is not None
    pipeline.refuse(config.component)
    assert config.component is not None
    from natprec.measurement.component import Wanted, subject_of_component

    wanted = Wanted(pipeline, config.component, asked_of(pipeline, config.prompts), config.steps, config.image_size)
    return subject_of_component(
        wanted, device=config.device, products=config.arithmetic, trust_remote_code=config.trust_remote_code
    )


def judge_trajectory(folder: Path, subject: Subject, seed: int, stages: Stages) -> str | None:
    """Make images with both pipelines, and write what is found beside verification.json.

    Returns:
        What a person wants to know first; None: the subject is no part of a pipeline.
    """
    from natprec.checkpoints.pipeline_reader import load_part
    from natprec.evaluation.trajectories import compare_trajectories, save_trajectory
    from natprec.tasks.diffusion import PipelinePart

    part = subject.task
    if not isinstance(part, PipelinePart) or not subject.segmented.workers.first:
        return None
    with stages.stage("images"):
        network = load_part(folder, part.component).to(next(subject.model.parameters()).device)
        found, images = compare_trajectories(part, network, subject.distortion, seed)
        save_trajectory(folder, found, images)
    stages.note(found.line)
    return found.line
