"""The text that judges: two parts that have no window in common, the same on every run."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from natprec.config import MARGIN, QuantizeConfig
from natprec.data.ordinary import NAME, ORDINARY
from natprec.data.seen import source_digest
from natprec.data.windows import GENERATE_BATCH
from natprec.evaluation.verification import Verification
from natprec.measurement.subject import Subject
from natprec.pipeline import quantize as pipeline
from natprec.pipeline.held_out import WrittenText, held_out, part_of, spread
from natprec.tasks import Samples
from natprec.utils.progress import Stages
from natprec.utils.records import OWN_TEXT
from natprec.utils.workers import Workers
from tests.conftest import tiny_model
from tests.measurement.test_sharding import BUILDING, together
from tests.run_command import natprec

QUIET = Stages(quiet=True)
EPS = 2e-4


@pytest.fixture
def config(tiny_folder: Path, text_file: Path) -> QuantizeConfig:
    return QuantizeConfig(
        str(tiny_folder), eps=EPS, data=str(text_file), tokens=256, eval_tokens=512, length=64, group_size=32,
        rounding="rtn",
    )  # fmt: skip


@pytest.fixture
def made(tiny_tokenizer: Any) -> Subject:
    return Subject.in_memory(tiny_model(), tiny_tokenizer, "tiny")


@pytest.mark.parametrize("count", [1, 2, 7, 64, 255])
@pytest.mark.parametrize("fixed", [None, 1, 5, 64])
def test_parts_share_nothing_and_together_are_all(count: int, fixed: int | None) -> None:
    windows = Samples.text(torch.arange(count).view(-1, 1))
    first, second = (part_of(windows, number, fixed).ids.flatten().tolist() for number in (0, 1))
    assert sorted(first + second) == list(range(count))
    assert len(first) == min(count, fixed or -(-count // 2))


def test_every_beginning_is_spread_over_the_text() -> None:
    order = spread(64)
    assert sorted(order) == list(range(64))
    for size in (2, 4, 8, 16, 32):
        assert {number * size // 64 for number in order[:size]} == set(range(size)), "one in each stretch"


def test_what_the_model_writes_does_not_depend_on_the_portions(made: Subject) -> None:
    def read(part: int, *portions: int) -> torch.Tensor:
        text = WrittenText(made, 8, 0, part, QUIET)
        return torch.cat([found.ids for each in portions if (found := text.take(each)) is not None])

    at_once = read(0, 40 * 8)
    assert at_once.shape == (40, 8)
    assert torch.equal(at_once, read(0, 3 * 8, 20 * 8, 17 * 8))
    assert not torch.equal(at_once, read(1, 40 * 8))
    assert len({tuple(row.tolist()) for row in at_once}) == 40, "each batch is another text"


def test_several_processes_write_the_text_of_one(made: Subject, tiny_tokenizer: Any) -> None:
    wrote: dict[int, int] = {}

    def read(workers: Workers) -> torch.Tensor:
        with BUILDING:
            own = Subject.in_memory(tiny_model(), tiny_tokenizer, "tiny")
        own.segmented.workers = workers
        text = WrittenText(own, 8, 0, 0, QUIET)
        batch = text._batch
        text._batch = lambda *given: (wrote.update({workers.rank: wrote.get(workers.rank, 0) + 1}), batch(*given))[1]  # type: ignore[method-assign]
        return torch.cat([found.ids for each in (3 * 8, 45 * 8) if (found := text.take(each)) is not None])

    alone = read(Workers())
    wrote.clear()
    for found in together(2, read):
        assert torch.equal(found, alone)
    assert min(wrote.values()) >= 1, "the batches are shared"
    assert sum(wrote.values()) == -(-48 // GENERATE_BATCH)


def test_without_a_text_the_model_and_ordinary_text_judge(made: Subject) -> None:
    asked = QuantizeConfig("tiny", eps=1.0, length=64)
    texts = held_out(asked, made, QUIET).part(0)
    assert [text.name for text in texts] == [OWN_TEXT, NAME]
    assert texts[1].digest == source_digest(str(ORDINARY))
    first, second = (held_out(asked, made, QUIET).part(number)[1].windows for number in (0, 1))  # type: ignore[attr-defined]
    assert first.shape == second.shape
    assert first.shape[1] == 64
    assert 20_000 < first.tokens <= 32_768


def test_a_correction_is_judged_on_text_that_did_not_ask_for_it(
    config: QuantizeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest, seen = pipeline.verify, list[Any]()

    def verify(folder: Path, subject: Subject, texts: Any, *args: Any, **options: Any) -> Verification:
        found = honest(folder, subject, texts, *args, **options)
        seen.append({tuple(row.tolist()) for row in texts[0].windows.ids})
        if len(seen) == 1:
            first = replace(found.first_verdict, verdict="fail", kl_mean=2 * EPS)  # type: ignore[type-var]
            found = replace(found, kl_mean=2 * EPS, passed=False, verdict="fail", first_verdict=first)
        return found

    monkeypatch.setattr(pipeline, "verify", verify)
    _, _, verification = pipeline.quantize(config, tmp_path / "out")
    assert len(seen) == 2
    assert not seen[0] & seen[1]
    assert (verification.corrections, verification.part, verification.verdict) == (1, 1, "pass")
    assert verification.first_verdict is not None
    assert (verification.first_verdict.verdict, verification.first_verdict.kl_mean) == ("fail", 2 * EPS)
    monkeypatch.undo()
    again = natprec("verify", tmp_path / "out", "--model", config.model, "--eval-data", config.data, "--json")
    assert again.code == 0, again.err
    printed = json.loads(again.out)
    assert printed["data_digest"] == verification.data_digest, "the windows that quantize judged, of the second part"
    assert printed["kl_mean"] == pytest.approx(verification.kl_mean)
    assert printed["first_verdict"]["kl_mean"] == 2 * EPS, "stays on record"


def test_a_text_with_nothing_left_is_not_corrected_on(
    config: QuantizeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = pipeline.verify

    def verify(*args: Any, **options: Any) -> Verification:
        return replace(honest(*args, **options), kl_mean=2 * EPS, passed=False, verdict="fail")

    monkeypatch.setattr(pipeline, "verify", verify)
    monkeypatch.setattr("natprec.pipeline.held_out.PARTS", 1)
    _, _, verification = pipeline.quantize(config, tmp_path / "out")
    assert (verification.corrections, verification.verdict) == (0, "fail")


def test_the_files_say_how_they_came_to_be_and_not_where(
    config: QuantizeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text_file: Path
) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")
    out = tmp_path / "out"
    pipeline.quantize(replace(config, seed=3), out)
    for name in ("plan.json", "verification.json"):
        said = json.loads((out / name).read_text())["provenance"]
        assert said["date"] == "2023-11-14T22:13:20Z"
        assert said["versions"].keys() == {"python", "natprec", "torch", "transformers", "compressed-tensors"}
        assert said["command"] == (
            "natprec quantize --model tiny --eps 0.0002 --data made-up.txt --tokens 256 --sequence-length 64 "
            "--eval-tokens 512 --group-size 32 --rounding rtn --seed 3"
        )
        assert (said["device"], said["seed"], said["model"], said["model_revision"]) == ("cpu", 3, "tiny", None)
        assert said["calibration"]["name"] == "made-up.txt"
        assert said["calibration"]["digest"] == source_digest(str(text_file))
        assert said["calibration"]["sequences"] * said["calibration"]["length"] == 256
        assert "/" not in json.dumps(said).replace("\\/", "/")
    judged = json.loads((out / "verification.json").read_text())
    assert [text["name"] for text in judged["texts"]] == ["made-up.txt"]
    assert (judged["length"], judged["confidence"], judged["margin"]) == (64, 0.95, MARGIN)
