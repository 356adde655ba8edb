"""What models are for: the samples that they are given, how they are run, which figures are reported."""

from natprec.tasks.images import IMAGE_CLASSIFIER, IMAGE_ENCODER, IMAGE_TASKS
from natprec.tasks.samples import Samples
from natprec.tasks.speech import SPEECH
from natprec.tasks.task import Metric, Task
from natprec.tasks.text import CAUSAL, ENCODER
from natprec.tasks.vision_language import VISION_LANGUAGE

__all__ = [
    "CAUSAL",
    "ENCODER",
    "IMAGE_CLASSIFIER",
    "IMAGE_ENCODER",
    "IMAGE_TASKS",
    "SPEECH",
    "VISION_LANGUAGE",
    "Metric",
    "Samples",
    "Task",
]
