"""The front matter of a card: what the Hub reads (huggingface.co/docs/hub/model-cards).

`model-index` repeats the figures of verification.json and eval.json to the last digit. `datasets` stays out: the Hub
shows it as what a model was trained on. The Hub has no place of its own for a KL yet (hub-docs issue 2747).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from natprec.distortions import task_named
from natprec.publishing.base import Base
from natprec.publishing.contents import Contents
from natprec.publishing.wording import words
from natprec.tasks import IMAGE_CLASSIFIER, IMAGE_ENCODER, IMAGE_TASKS, SPEECH, Task

if TYPE_CHECKING:
    from huggingface_hub import ModelCardData

CAUSAL_TAG, ENCODER_TAG, VISION_TAG = "text-generation", "feature-extraction", "image-text-to-text"

FOLDER_TAGS = {
    IMAGE_CLASSIFIER.name: "image-classification",
    IMAGE_ENCODER.name: "image-feature-extraction",
    SPEECH.name: "automatic-speech-recognition",
}
"""Task → the Hub's name for it."""


def front_matter(contents: Contents) -> str:
    """YAML, without its `---`."""
    from huggingface_hub import ModelCardData

    base = base_of(contents)
    more: dict[str, Any] = {} if base is None else {"base_model_relation": "quantized"}
    found = [*_distortions(contents), *_scores(contents)]
    more |= {"eval_results": found, "model_name": repository_name(contents)} if found else {}
    data: ModelCardData = ModelCardData(
        base_model=None if base is None else base.id,
        license=None if base is None else base.license,
        license_name=None if base is None else base.license_name,
        license_link=None if base is None else base.license_link,
        language=(base.language or None) if base is not None else None,
        library_name=library(contents),
        pipeline_tag=task_tag(contents),
        tags=tags(contents),
        **more,
    )
    return data.to_yaml(line_break="\n").strip()


def base_of(contents: Contents) -> Base | None:
    """The original on the Hub; None where no commit of it was read, so that no card can claim one."""
    if contents.published is not None and contents.published.base is not None:
        return contents.published.base
    made = contents.plan.provenance
    if made is None or made.model_revision is None or "/" not in made.model:
        return None
    return Base(made.model.partition("@")[0], made.model_revision, compared=True)


def repository_name(contents: Contents) -> str:
    """What the checkpoint is called: the last part of its repository's name, else its folder's."""
    return contents.name if contents.published is None else contents.published.repository.rpartition("/")[2]


def library(contents: Contents) -> str:
    """What loads it, by the Hub's name."""
    if contents.gguf:
        return "gguf"
    embeds = not is_causal(contents) and folder_task(contents) is None
    return "sentence-transformers" if embeds else "transformers"


def folder_task(contents: Contents) -> Task | None:
    """What a model is for that is given a folder of images or recordings; None: it is given text."""
    task = task_named(contents.plan.distortion)
    return task if task in (*IMAGE_TASKS, SPEECH) else None


def is_causal(contents: Contents) -> bool:
    """Whether it predicts a next token; else it embeds text, or is given images or recordings."""
    return not contents.plan.distortion.startswith("embedding") and folder_task(contents) is None


def task_tag(contents: Contents) -> str:
    """The original's, else by what it does."""
    base = base_of(contents)
    if base is not None and base.pipeline_tag:
        return base.pipeline_tag
    task = folder_task(contents)
    if task is not None:
        return FOLDER_TAGS[task.name]
    if contents.sees:
        return VISION_TAG
    return CAUSAL_TAG if is_causal(contents) else ENCODER_TAG


def tags(contents: Contents) -> list[str]:
    """The engine's name only where all formats of the plan were seen to load there."""
    plan = contents.plan
    widths = [bits for bits in plan.histogram() if bits < 16]
    seen = plan.engine == "vllm" and (plan.needs is None or not plan.needs.untested)
    return [
        "natprec", "quantized", "gguf" if contents.gguf else "compressed-tensors",
        *(["mixed-precision"] if len(widths) > 1 else []), *(["vllm"] if seen else []),
    ]  # fmt: skip


def _result(contents: Contents, name: str, digest: str | None, kind: str, what: str, value: float) -> Any:
    from huggingface_hub import EvalResult

    return EvalResult(
        task_type=task_tag(contents), dataset_type=name, dataset_name=name, dataset_revision=digest,
        metric_type=kind, metric_name=what, metric_value=value,
    )  # fmt: skip


def _scores(contents: Contents) -> list[Any]:
    """Of each task its metric."""
    found = contents.evaluation
    return [] if found is None else [
        _result(contents, task.name, task.documents_digest, task.metric, f"{task.metric}, {task.n} documents",
                task.quantized)
        for task in found.tasks
    ]  # fmt: skip


def _distortions(contents: Contents) -> list[Any]:
    """Of each text its distortion; of the one that decided, perplexity and agreement."""
    found = contents.verification
    if found is None:
        return []
    label = words(found.distortion)[0]
    texts = [(each.name, each.digest, each.kl_mean) for each in found.texts]
    every = [
        _result(contents, name, digest, found.distortion, f"{label} to the original", mean)
        for name, digest, mean in texts or [(found.data, found.data_digest, found.kl_mean)]
    ]
    digest = next((digest for name, digest, _ in texts if name == found.data), found.data_digest)
    for kind, what, value in (
        ("perplexity", "perplexity", found.perplexity_quantized),
        ("top1_agreement", "same likeliest token as the original", found.top1_agreement),
    ):
        if value is not None:
            every.append(_result(contents, found.data, digest, kind, what, value))
    return every
