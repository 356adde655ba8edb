"""A model on disk is rounded and judged a segment at a time: the same checkpoint, and a killed run goes on."""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from natprec.checkpoints.flows import weights_only
from natprec.checkpoints.writer import CheckpointWriter
from natprec.config import QuantizeConfig
from natprec.errors import InputError
from natprec.evaluation import verify as judge
from natprec.evaluation.verification import Verification
from natprec.measurement.measure import measure
from natprec.measurement.subject import Subject
from natprec.models.hidden_states import HiddenStates
from natprec.models.weights import OnDisk
from natprec.pipeline import rounded
from natprec.pipeline.request import refuse_on_disk
from natprec.pipeline.resume import SEGMENTS, forget
from natprec.rounding.apply import STATE
from natprec.solver import Plan
from natprec.tasks import Samples
from natprec.utils.progress import Stages
from natprec.utils.provenance import Provenance
from tests.arrange import tokens
from tests.conftest import tiny_model
from tests.models.test_blocks import built
from tests.models.test_weights import opened, saved
from tests.run_command import natprec
from tests.test_kill import ENVIRONMENT, command

QUIET = Stages(quiet=True)
TEXT, HELD_OUT = tokens(4, 16), tokens(3, 16, seed=1)


def planned(subject: Subject, engine: str = "vllm", **options: Any) -> Plan:
    sites = "all" if options.keys() & {"activations", "kv"} else "weights"
    found = measure(subject, TEXT, group_size=16, engine=engine, sites=sites)
    return found.solve(bits=4.5, **options) if "kv" not in options else found.solve(eps=0.5, **options)


def in_memory(subject: Subject, plan: Plan, folder: Path, rounding: str = "gptq") -> Verification:
    """A checkpoint of a model in memory, which is the original again afterwards, and how it is judged."""
    before = {name: parameter.clone() for name, parameter in subject.model.named_parameters()}
    folder.mkdir()
    rounded.round_and_write(subject, plan, TEXT, rounding, folder, None, QUIET)
    assert all(torch.equal(parameter, before[name]) for name, parameter in subject.model.named_parameters())
    return judge.verify(folder, subject, HELD_OUT, plan, rounding=rounding, data="", stages=QUIET)


def from_disk(subject: Subject, plan: Plan, folder: Path, resume_folder: Path, rounding: str = "gptq") -> Verification:
    folder.mkdir()
    rounded.round_and_write(subject, plan, TEXT, rounding, folder, resume_folder, QUIET)
    return judge.verify(
        folder, subject, HELD_OUT, plan, rounding=rounding, data="", stages=QUIET, resume_folder=resume_folder
    )


def files(folder: Path) -> dict[str, bytes]:
    """Everything in a checkpoint."""
    return {file.name: file.read_bytes() for file in folder.rglob("*") if file.is_file()}


@pytest.mark.parametrize(
    ("family", "engine", "rounding"),
    [
        ("llama", "vllm", "gptq"),
        ("llama", "transformers", "rtn"),
        ("gpt-neox", "natprec", "gptq"),
        ("gpt2", "natprec", "gptq"),
        ("gemma3", "natprec", "gptq"),
        ("opt", "transformers", "gptq"),
        ("roberta", "natprec", "rtn"),
        ("gpt-neox", "natprec", "yaqa"),
        ("roberta", "vllm", "yaqa"),
        ("gpt2", "natprec", "yaqa"),
        ("llama", "natprec", "learned"),
        ("gpt2", "natprec", "learned"),
        ("roberta", "vllm", "learned"),
    ],
)
def test_the_same_checkpoint_and_verdict(
    tmp_path: Path, tiny_tokenizer: Any, family: str, engine: str, rounding: str
) -> None:
    folder = saved(tmp_path / "m", built(family), tiny_tokenizer)
    whole, apart = opened(folder, on_disk=False), opened(folder)
    plan = planned(whole, engine)
    one = in_memory(whole, plan, tmp_path / "one", rounding)
    other = from_disk(apart, plan, tmp_path / "other", tmp_path / "kept" / SEGMENTS, rounding)
    assert files(tmp_path / "one") == files(tmp_path / "other")
    assert one.kl_mean > 1e-4
    assert other.kl_mean == pytest.approx(one.kl_mean, rel=1e-4)
    assert other.kl_p99 == pytest.approx(one.kl_p99, rel=1e-4)
    assert other.perplexity_quantized == pytest.approx(one.perplexity_quantized)
    assert any((tmp_path / "kept" / SEGMENTS).iterdir())
    forget(tmp_path / "kept")
    assert not (tmp_path / "kept").exists()


def test_rounded_activations_are_judged(tmp_path: Path, tiny_tokenizer: Any) -> None:
    folder = saved(tmp_path / "m", built("llama"), tiny_tokenizer)
    whole, apart = opened(folder, on_disk=False), opened(folder)
    plan = planned(whole, "natprec", activations="4", kv="4")
    one = in_memory(whole, plan, tmp_path / "one")
    other = from_disk(apart, plan, tmp_path / "other", tmp_path / "kept")
    assert files(tmp_path / "one") == files(tmp_path / "other")
    assert other.kl_mean == pytest.approx(one.kl_mean, rel=1e-4)
    config = json.loads((tmp_path / "other" / "config.json").read_text())
    config["quantization_config"] = weights_only(config["quantization_config"])
    (tmp_path / "other" / "config.json").write_text(json.dumps(config))
    plain = judge.verify(tmp_path / "other", apart, HELD_OUT, plan, rounding="gptq", data="", stages=QUIET)
    assert plain.kl_mean < 0.98 * one.kl_mean, "without activations it is another figure, whatever the plan says"


def test_one_block_at_a_time(tmp_path: Path, tiny_tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = saved(tmp_path / "m", tiny_model(num_hidden_layers=6, vocab_size=512), tiny_tokenizer)
    subject = opened(folder)
    plan = planned(opened(folder, on_disk=False))
    block = sum(parameter.numel() for parameter in subject.segmented.blocks[0].parameters())
    outside = sum(parameter.numel() for parameter in subject.segmented._outside())
    held = most = 0
    values = OnDisk._values
    release = OnDisk.hold

    def counted(self: OnDisk, parameter: nn.Parameter) -> Tensor:
        nonlocal held, most
        held += parameter.numel()
        most = max(most, held)
        return values(self, parameter)

    def holding(self: OnDisk, parameters: Any, upcoming: Any = ()) -> Any:
        @contextlib.contextmanager
        def hold() -> Any:
            nonlocal held
            before = held
            with release(self, parameters, upcoming):
                yield
            held = before

        return hold()

    monkeypatch.setattr(OnDisk, "_values", counted)
    monkeypatch.setattr(OnDisk, "hold", holding)
    from_disk(subject, plan, tmp_path / "out", tmp_path / "kept")
    assert block <= most <= block + 2 * outside, "of two models that are judged, both heads"
    assert all(bool(parameter.isnan().all()) for parameter in subject.model.parameters()), "nothing stayed"


def provenance(date: str) -> Provenance:
    return Provenance({}, date, "natprec.solve", "cpu", 0, "m", "", None, None)


@pytest.mark.parametrize(
    ("last", "rounding"),
    [(-1, "gptq"), (2, "gptq"), (4, "gptq"), (2, "yaqa"), (4, "yaqa"), (2, "learned"), (4, "learned")],
    ids=["embedding", "middle", "head", "middle-yaqa", "head-yaqa", "middle-learned", "head-learned"],
)
def test_rounding_goes_on_where_it_was(
    tmp_path: Path, tiny_tokenizer: Any, monkeypatch: pytest.MonkeyPatch, last: int, rounding: str
) -> None:
    folder = saved(tmp_path / "m", tiny_model(num_hidden_layers=4, vocab_size=96), tiny_tokenizer)
    subject, resume_folder = opened(folder), tmp_path / "kept"
    plan = replace(planned(subject, "natprec"), provenance=provenance("2030-01-01T00:00:00Z"))
    for name in ("whole", "cut", "resumed", "other"):
        (tmp_path / name).mkdir()

    def rounds(out: Path, partial: Path, text: Samples = TEXT) -> None:
        rounded.round_and_write(subject, plan, text, rounding, out, partial, QUIET)

    rounds(tmp_path / "whole", tmp_path / "kept-whole")
    put, segments = CheckpointWriter.put, []

    def interrupted(self: CheckpointWriter, segment: int, codes: Any) -> None:
        if segment > last:
            raise KeyboardInterrupt
        put(self, segment, codes)

    def recorded(self: CheckpointWriter, segment: int, codes: Any) -> None:
        segments.append(segment)
        put(self, segment, codes)

    monkeypatch.setattr(CheckpointWriter, "put", interrupted)
    if last < 4:
        with pytest.raises(KeyboardInterrupt):
            rounds(tmp_path / "cut", resume_folder)
    else:
        rounds(tmp_path / "cut", resume_folder)
    assert all(bool(parameter.isnan().all()) for parameter in subject.model.parameters()), "nothing stayed"
    monkeypatch.setattr(CheckpointWriter, "put", recorded)
    plan = replace(plan, provenance=provenance("2031-01-01T00:00:00Z"))  # solved again
    rounds(tmp_path / "resumed", resume_folder)
    assert segments == [-1, *range(min(last, 3) + 1, 5)]
    resumed, whole = files(tmp_path / "resumed"), files(tmp_path / "whole")
    assert b"2031-" in resumed.pop("plan.json")
    assert b"2030-" in whole.pop("plan.json")
    assert resumed == whole
    segments.clear()
    rounds(tmp_path / "other", resume_folder, TEXT[torch.arange(3, -1, -1)])
    assert segments == [-1, 0, 1, 2, 3, 4], "another text: nothing of it can be used"


def test_judging_goes_on_where_it_was(tmp_path: Path, tiny_tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = saved(tmp_path / "m", tiny_model(num_hidden_layers=4, vocab_size=96), tiny_tokenizer)
    subject, resume_folder, out = opened(folder), tmp_path / "kept", tmp_path / "out"
    plan = planned(subject)
    whole = from_disk(subject, plan, out, tmp_path / "kept-whole")
    through, passes = HiddenStates.through, []

    def counted(self: HiddenStates, segment: int, advance: Any = str) -> None:
        passes.append(segment)
        if len(passes) == 9:  # the original's prefix and 4 blocks, then 2 blocks of the quantized
            raise KeyboardInterrupt
        through(self, segment, advance)

    monkeypatch.setattr(HiddenStates, "through", counted)
    options: Any = {"rounding": "gptq", "data": "", "stages": QUIET, "resume_folder": resume_folder}
    with pytest.raises(KeyboardInterrupt):
        judge.verify(out, subject, HELD_OUT, plan, **options)
    monkeypatch.setattr(
        HiddenStates, "through", lambda self, segment, advance: (passes.append(segment), through(self, segment))
    )
    passes.clear()
    assert judge.verify(out, subject, HELD_OUT, plan, **options).kl_mean == whole.kl_mean
    assert passes == [-1, -1, 2, 3], "the original is done, the quantized goes on"


def test_what_needs_the_whole_model_is_refused(tiny_folder: Path) -> None:
    apart, whole = opened(tiny_folder), opened(tiny_folder, on_disk=False)
    learns = QuantizeConfig("model", learn_tokens=3)
    for config in (learns, QuantizeConfig("model", time=1.0)):
        with pytest.raises(InputError, match=r"needs the whole model in memory.*--weights memory"):
            refuse_on_disk(apart, config)
    refuse_on_disk(apart, QuantizeConfig("model"))
    refuse_on_disk(whole, learns)


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer: Any, text_file: Path) -> list[str]:
    model = tiny_model(num_hidden_layers=8, hidden_size=128, intermediate_size=256)
    folder = saved(tmp_path_factory.mktemp("large") / "m", model, tiny_tokenizer)
    return ["--model", str(folder), "--data", str(text_file), "--tokens", "1024", "--sequence-length", "64"]


def test_a_killed_quantize_goes_on(tmp_path: Path, large: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """SIGKILL while it rounds: the same checkpoint as in memory, and nothing of the run is left."""
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")  # their dates
    options = [*large, "--eps", "0.01", "--eval-tokens", "256", "--seed", "1", "--arithmetic", "float32"]
    assert natprec("quantize", *options, "--weights", "disk", "--out", tmp_path / "whole").code in (0, 3)
    out, segment = tmp_path / "out", tmp_path / "out.partial" / "segments" / "segment-00003.safetensors"
    process = subprocess.Popen(
        command("quantize", options, out, "--weights", "disk"), env=ENVIRONMENT, stderr=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 120
    while not (segment.exists() and segment.with_name(STATE).exists()):
        assert process.poll() is None, "it ended before it was killed"
        assert time.monotonic() < deadline
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    resumed = natprec("quantize", *options, "--weights", "disk", "--out", out, "--resume")
    assert resumed.code in (0, 3), resumed.err
    names = [file.name for file in tmp_path.iterdir()]
    assert sorted(names) == ["out", "whole"]
    assert files(out)["model.safetensors"] == files(tmp_path / "whole")["model.safetensors"]
    verdicts = [json.loads((folder / "verification.json").read_text()) for folder in (out, tmp_path / "whole")]
    for verdict in verdicts:
        del verdict["checksum"], verdict["provenance"]["date"]
    assert verdicts[0] == verdicts[1]


def test_apply_and_verify_from_disk(tmp_path: Path, large: list[str]) -> None:
    """The commands one by one arrive where they do in memory."""
    assert natprec("measure", *large, "--weights", "disk", "--out", tmp_path / "m").code == 0
    assert natprec("solve", tmp_path / "m", "--eps", "0.01", "--out", tmp_path / "plan.json").code == 0
    for weights in ("memory", "disk"):
        applied = natprec(
            "apply",
            tmp_path / "plan.json",
            *large,
            "--rounding",
            "rtn",
            "--weights",
            weights,
            "--out",
            tmp_path / weights,
        )
        assert applied.code == 0, applied.err
    assert files(tmp_path / "memory") == files(tmp_path / "disk")
    judged = ["--eval-data", large[3], "--eval-tokens", "256", "--sequence-length", "64", "--json"]
    found = [
        json.loads(natprec("verify", tmp_path / "disk", *large[:2], *judged, "--weights", weights).out)["kl_mean"]
        for weights in ("memory", "disk")
    ]
    assert found[1] == pytest.approx(found[0], rel=1e-4)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["disk", "m", "memory", "plan.json"]
