"""What makes samples ready for a model, read from its folder: a tokenizer, a processor of images, or one of speech."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from natprec.errors import ModelError, NatprecError, first_line
from natprec.models.trust import feature_extractor_of, image_processor_of, tokenizer_of
from natprec.tasks import IMAGE_TASKS, SPEECH, Task

if TYPE_CHECKING:
    from transformers import PreTrainedConfig


@dataclass(frozen=True)
class SpeechProcessor:
    """What makes recordings ready, and text for the decoder; transformers has no class for some models."""

    feature_extractor: Any
    tokenizer: Any

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the files of both."""
        self.feature_extractor.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)


def read_processor(
    task: Task, where: str, gguf: Path | None, trust_remote_code: bool, config: PreTrainedConfig | None = None
) -> Any:
    """What makes samples ready for a model of this task, from its folder: a tokenizer, or a processor.

    Raises:
        ModelError: there is none that can be used.
    """
    if task in IMAGE_TASKS:
        return read_image_processor(where, trust_remote_code)
    if task == SPEECH:
        extractor = read_feature_extractor(where, trust_remote_code)
        return SpeechProcessor(extractor, read_tokenizer(where, gguf, trust_remote_code, config))
    return read_tokenizer(where, gguf, trust_remote_code, config)


def read_tokenizer(
    where: str, gguf: Path | None, trust_remote_code: bool, config: PreTrainedConfig | None = None
) -> Any:
    """The tokenizer that came with the model.

    A GGUF describes its tokenizer whole, so no class has to be looked up: AutoTokenizer would parse
    all metadata again (3 s) and arrive at the same object.

    Raises:
        ModelError: there is none that can be used.
    """
    from transformers import PreTrainedTokenizerFast

    try:
        if gguf:
            return PreTrainedTokenizerFast.from_pretrained(where, gguf_file=str(gguf))
        return tokenizer_of(where, trust_remote_code, config)
    except NatprecError:
        raise
    except Exception as error:
        raise ModelError(
            f"no usable tokenizer in {where!r} ({first_line(error)}); "
            "add tokenizer.json and tokenizer_config.json of the model that it was made from"
        ) from error


def read_image_processor(where: str, trust_remote_code: bool) -> Any:
    """What makes images ready for a model, from its folder.

    Raises:
        ModelError: there is none that can be used.
    """
    return _usable(image_processor_of, where, trust_remote_code, "processor of images")


def read_feature_extractor(where: str, trust_remote_code: bool) -> Any:
    """What makes recordings ready for a model, from its folder.

    Raises:
        ModelError: there is none that can be used.
    """
    return _usable(feature_extractor_of, where, trust_remote_code, "feature extractor")


def _usable(read: Callable[[str, bool], Any], where: str, trust_remote_code: bool, what: str) -> Any:
    try:
        return read(where, trust_remote_code)
    except NatprecError:
        raise
    except Exception as error:
        raise ModelError(
            f"model {where!r} has no usable {what} ({first_line(error)}); add preprocessor_config.json of the model "
            "that it was made from"
        ) from error
