"""Recordings for a speech model: a folder of them, made ready by the model's own feature extractor, and their texts.

The decoder is given the text of a file beside the recording, or else what the model itself writes, the likeliest token
each time, as it is used. Their place in the folder decides which recordings judge; one that was measured on, whatever
its file is called, does not judge.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from natprec.data.decoded import Prompted, eos_of, prompted, written
from natprec.data.folders import divided, spread_over
from natprec.data.recordings import find_recordings, transcript
from natprec.data.seen import NO_PIECES, Pieces, unseen_samples
from natprec.data.waves import read_wave
from natprec.errors import InputError, ModelError, NatprecError, first_line
from natprec.tasks import Samples
from natprec.tasks.samples import COUNTED, DECODED, fitting
from natprec.tasks.speech import encoded, positions, ready

SECONDS = 30.0
"""Of a recording that are heard where its model says nothing; what is longer is cut."""

PER_SECOND = 8
"""Tokens that a model may write, and as many more: some repeat themselves without an end."""

Progress = Callable[[int, int], None]


def read_speech(
    processor: Any,
    source: str | None,
    *,
    sequences: int,
    length: int,
    split: str,
    model: Any,
    shared: bool = False,
    progress: Progress = lambda done, total: None,
    note: Callable[[str], None] = lambda line: None,
    seen: Pieces = NO_PIECES,
    least: int | None = None,
    **of_text: Any,
) -> Samples:
    """Recordings of a folder, spread over it, with their texts: `sequences` of them, or all.

    Args:
        processor: has a `feature_extractor` and a `tokenizer`; `source`: the folder; `model`: that they are for.
        split: 'calibration' or 'held-out'; `shared`: whether both come out of this folder.
        progress: told (positions done, positions in all), of `length` for each recording.
        note: gets a line where there are fewer than were asked for, or where recordings are cut.
        seen: of what was measured on; recordings among it are left out.
        least: recordings that are enough; default: one.
        of_text: what a text would be asked for.
    Raises:
        InputError: no folder, no recording, a broken one, or too few that were not measured on.
        ModelError: the processor and the model do not go together.
    """
    if source is None:
        option = "--data" if split == "calibration" else "--eval-data"
        raise InputError(f"no recordings, and a speech model makes none; name a folder of them with {option}")
    if not hasattr(processor, "feature_extractor") or not hasattr(processor, "tokenizer"):
        raise InputError(
            f"a {type(processor).__name__} makes no recordings ready; give the model's processor, which has a feature "
            "extractor and a tokenizer, in place of the tokenizer"
        )
    files = find_recordings(source)
    if shared:
        files = divided(files)[split == "held-out"]
    chosen = spread_over(files, sequences)
    tensors, seconds, cut = _heard(processor.feature_extractor, chosen)
    samples = _with_texts(processor.tokenizer, model, tensors, seconds, [
        "" if number in cut else transcript(file) for number, file in enumerate(chosen)
    ], chosen[0], lambda done: progress(done * length * sequences // len(chosen), length * sequences))  # fmt: skip
    if cut:
        note(
            f"{len(cut)} of {len(chosen)} recordings are longer than {_longest(processor.feature_extractor):g} s: "
            "their beginning is heard, and the model writes its text"
        )
    samples = unseen_samples(
        samples, seen, least, f"recordings in {source!r}", "judge on another folder with --eval-data"
    )
    if len(chosen) < sequences and split == "calibration":
        note(f"{source!r} has {len(chosen)} recordings to measure on; --tokens would take {sequences}")
    return samples


def _longest(extractor: Any) -> float:
    """Seconds that are heard."""
    return float(getattr(extractor, "chunk_length", None) or SECONDS)


def _heard(extractor: Any, files: Sequence[Path]) -> tuple[dict[str, Tensor], list[float], set[int]]:
    """What the encoder takes, as one batch; seconds of each recording; which of them were cut.

    Raises:
        ModelError: the feature extractor fails.
    """
    rate = int(extractor.sampling_rate)
    most = round(_longest(extractor) * rate)
    made, seconds, cut = [], [], set()
    for number, file in enumerate(files):
        wave = read_wave(file, rate)
        if len(wave) > most:
            cut.add(number)
        seconds.append(min(len(wave), most) / rate)
        try:
            features = extractor(wave[:most], sampling_rate=rate, return_tensors="pt", return_attention_mask=True)
        except NatprecError:
            raise
        except Exception as error:  # whatever an extractor raises
            raise ModelError(
                f"the feature extractor {type(extractor).__name__} cannot be given {str(file)!r} "
                f"({first_line(error)}); take the recording out of the folder, or the extractor of the same model"
            ) from error
        made.append({name: torch.as_tensor(value) for name, value in features.items()})
    alike = len({tuple(each[name].shape for name in sorted(each)) for each in made}) == 1
    names = [name for name in made[0] if name != "attention_mask" or not alike]  # else each is heard whole
    return {name: torch.cat(_padded([each[name] for each in made])) for name in names}, seconds, cut


def _padded(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Tensors (1, …) with zeros at the end of each dimension, so that all have one shape."""
    shape = [max(sizes) for sizes in zip(*(each.shape for each in tensors), strict=True)]
    found = []
    for each in tensors:
        pads = [(0, wanted - own) for wanted, own in zip(shape, each.shape, strict=True)]
        found.append(functional.pad(each, [side for pad in reversed(pads) for side in pad]))
    return found


def _with_texts(
    tokenizer: Any,
    model: Any,
    tensors: dict[str, Tensor],
    seconds: Sequence[float],
    transcripts: Sequence[str],
    file: Path,
    advance: Callable[[int], None],
) -> Samples:
    """Samples with the decoder's tokens.

    Args:
        file: of the first recording, for errors.
        advance: told how many recordings are done.
    Raises:
        ModelError: the model does not take what its feature extractor makes.
    """
    device = next(model.parameters()).device
    first = {name: tensor[:1].to(device) for name, tensor in tensors.items()}
    try:
        with torch.no_grad():
            frames = encoded(model, first).last_hidden_state.shape[1]
    except (AttributeError, IndexError, RuntimeError, TypeError, ValueError) as error:
        shapes = ", ".join(str(tuple(tensor.shape)) for tensor in first.values())
        raise ModelError(
            f"model {type(model).__name__} cannot be given the {shapes} that its feature extractor makes of "
            f"{file.name!r} ({first_line(error)}); take the extractor of the same model"
        ) from error
    most = positions(model)
    texts: list[Prompted] = []
    step = fitting(frames + min(most, round(max(seconds) * PER_SECOND)))
    for start in range(0, len(seconds), step):
        part = slice(start, start + step)
        heard = {name: tensor[part].to(device) for name, tensor in tensors.items()}
        several = prompted(model, heard)
        given = [tokenizer(text, add_special_tokens=False)["input_ids"] if text else None for text in transcripts[part]]
        missing = [number for number, text in enumerate(given) if text is None]
        if missing:
            some = {name: tensor[missing] for name, tensor in heard.items()}
            limits = [PER_SECOND + round(PER_SECOND * seconds[start + number]) for number in missing]
            own = written(model, some, [several[number] for number in missing], limits)
            given = [own.pop(0) if text is None else text for text in given]
        texts += [Prompted(prompt, tuple(text or ())) for prompt, text in zip(several, given, strict=True)]
        advance(min(start + step, len(seconds)))
    texts = [each.within(most) for each in texts]
    length = max(len(each) for each in texts)
    end = eos_of(model)[0]
    tensors[DECODED] = torch.tensor([each.padded(length, end) for each in texts])
    tensors[COUNTED] = torch.tensor([each.counted(length) for each in texts])
    return ready(model, {name: tensor.to(device) for name, tensor in tensors.items()})
