"""Texts that a decoder is given, and recordings that are known again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from natprec.data.decoded import Prompted, prompted, written
from natprec.data.seen import pieces_of
from natprec.data.speech import read_speech
from natprec.errors import InputError
from natprec.models.loading import LoadedModel, load_model
from natprec.tasks import Samples
from natprec.tasks.samples import COUNTED, DECODED
from natprec.tasks.speech import SPEECH
from tests.speech_models import recordings, saved, sound, write_wave


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer: Any) -> dict[str, LoadedModel]:
    """A model of each family."""
    folder = tmp_path_factory.mktemp("models")
    return {name: load_model(str(saved(name, folder / name, tiny_tokenizer))) for name in ("whisper", "moonshine")}


def read(loaded: LoadedModel, folder: Path, **wanted: Any) -> Samples:
    own = {"sequences": 100, "length": 64, "split": "calibration", "model": loaded.model, **wanted}
    return read_speech(loaded.tokenizer, str(folder), **own)


def test_a_prompt_and_a_text_count_from_the_first_prediction_of_text_to_its_end() -> None:
    text = Prompted((7, 8), (1, 2, 3))
    assert len(text) == 6
    assert text.padded(8, 9) == [7, 8, 1, 2, 3, 9, 9, 9]
    assert text.counted(8) == [False, True, True, True, True, False, False, False]
    assert text.within(5).text == (1, 2)
    assert text.within(2).text == ()
    assert Prompted((7, 8), ()).counted(3) == [False, True, False]


def test_a_transcript_is_given_where_there_is_one(loaded: dict[str, LoadedModel], tmp_path: Path) -> None:
    folder = recordings(tmp_path / "wav", 6)
    (folder / "000.txt").write_text("  abc def\n")
    samples = read(loaded["whisper"], folder)
    tokenizer, count = loaded["whisper"].tokenizer.tokenizer, len(loaded["whisper"].tokenizer.tokenizer)
    text = tokenizer("abc def", add_special_tokens=False)["input_ids"]
    row = samples.ids[0].tolist()
    assert row[:1] == [0]
    assert row[1] in (count - 4, count - 3)  # the language that it hears
    assert row[2:] == [count - 2, count - 1, *text] + [1] * (len(row) - 4 - len(text))
    counts = samples.tensors[COUNTED][0].nonzero().flatten().tolist()
    assert counts == list(range(3, 4 + len(text)))
    assert read(loaded["moonshine"], folder).ids[0, : 1 + len(text)].tolist() == [0, *text]


@pytest.mark.parametrize("family", ["whisper", "moonshine"])
def test_the_model_writes_what_it_finds_likeliest(loaded: dict[str, LoadedModel], tmp_path: Path, family: str) -> None:
    model: Any = loaded[family].model
    samples = read(loaded[family], recordings(tmp_path / "wav", 8, seconds=0.8))
    own = [number for number in range(8) if number % 5]
    assert len({tuple(samples.ids[number].tolist()) for number in own}) > 1
    with torch.no_grad():
        said = SPEECH.forward(model, samples).logits.argmax(-1)
    for number in own:
        counted = samples.tensors[COUNTED][number].nonzero().flatten()[:-1]  # the last one is cut, or the end
        assert torch.equal(said[number][counted], samples.ids[number][counted + 1])


def test_a_batch_writes_what_each_would_write_alone(loaded: dict[str, LoadedModel], tmp_path: Path) -> None:
    model: Any = loaded["whisper"].model
    samples = read(loaded["whisper"], recordings(tmp_path / "wav", 4))
    heard = {name: tensor for name, tensor in samples.tensors.items() if name not in (DECODED, COUNTED)}
    prompts = prompted(model, heard)
    limits = [3, 9, 5, 0]
    together = written(model, heard, prompts, limits)
    assert [len(row) <= limit for row, limit in zip(together, limits, strict=True)] == [True] * 4
    for number in range(3):
        one = {name: tensor[number : number + 1] for name, tensor in heard.items()}
        assert written(model, one, prompts[number : number + 1], limits[number : number + 1]) == [together[number]]


def test_what_is_never_written_is_not(loaded: dict[str, LoadedModel], tmp_path: Path) -> None:
    model: Any = loaded["moonshine"].model
    folder = recordings(tmp_path / "wav", 4)
    first = read(loaded["moonshine"], folder).ids[1, 1].item()
    model.generation_config.begin_suppress_tokens = [first]
    try:
        ids = read(loaded["moonshine"], folder).ids[1]
    finally:
        model.generation_config.begin_suppress_tokens = None
    assert ids[1] != first


def test_a_recording_is_known_again_beside_longer_ones_and_with_another_text(
    loaded: dict[str, LoadedModel], tmp_path: Path
) -> None:
    for family in ("whisper", "moonshine"):
        one = recordings(tmp_path / family / "one", 8, seconds=0.5)
        seen = pieces_of(read(loaded[family], one))
        assert len(seen) == 8
        other = recordings(tmp_path / family / "other", 4, first=20)  # longer ones
        (one / "003.wav").rename(other / "000.wav")
        (other / "000.txt").write_text("ghi")
        assert len(read(loaded[family], other, split="held-out", seen=seen)) == 4
        with pytest.raises(InputError, match=r"1 of 5 recordings in .* were measured on, and 5 others are needed"):
            read(loaded[family], other, split="held-out", seen=seen, least=5)


def test_a_longer_recording_is_cut_and_its_transcript_left(loaded: dict[str, LoadedModel], tmp_path: Path) -> None:
    folder, notes = recordings(tmp_path / "wav", 3), list[str]()
    write_wave(folder / "000.wav", sound(0, 2.5))
    samples = read(loaded["whisper"], folder, note=notes.append)
    assert notes[0] == "1 of 3 recordings are longer than 1 s: their beginning is heard, and the model writes its text"
    short = recordings(tmp_path / "short", 3)
    write_wave(short / "000.wav", sound(0, 2.5)[:16_000])
    (short / "000.txt").unlink()
    assert torch.equal(read(loaded["whisper"], short).ids, samples.ids)
    assert notes[1].endswith("has 3 recordings to measure on; --tokens would take 100")


def test_batches_count_what_the_encoder_hears(loaded: dict[str, LoadedModel], tmp_path: Path) -> None:
    samples = read(loaded["whisper"], recordings(tmp_path / "wav", 40))
    assert samples.beside == 50
    assert len(samples.split()[0]) == 1024 // (50 + samples.length)
    again = Samples.unpacked(samples.packed())
    assert (again.length, again.beside, again.digest) == (samples.length, 50, samples.digest)
    assert samples[:3].beside == samples.followed_by(samples).beside == samples.to("cpu").beside == 50
