"""The table of cases tells right, refused, late and faulty apart, and finds what is silently wrong."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

SCRIPTS = Path(__file__).parents[1] / "scripts"


@pytest.fixture
def checks(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(SCRIPTS))
    import case_checks

    return case_checks


@pytest.fixture
def cases(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(SCRIPTS))
    import cases

    return cases


def tensors() -> dict[str, torch.Tensor]:
    draw = torch.Generator().manual_seed(0)
    names = ("model.embed_tokens", "lm_head", "model.layers.0.up_proj", "model.layers.1.up_proj")
    made = {f"{name}.weight": torch.randn(8, 8, generator=draw) for name in names}
    return made | {"model.norm.weight": torch.ones(8)}


@pytest.fixture
def trial(tmp_path: Path, checks: ModuleType) -> Any:
    """An input and an output of it that is right: one Linear as codes, the others kept."""
    source, made = tmp_path / "input", tmp_path / "made"
    for folder in (source, made / "natprec"):
        folder.mkdir(parents=True)
    before = tensors()
    after = dict(before)
    after["model.layers.0.up_proj.weight_packed"] = torch.zeros(8, 1, dtype=torch.int32)
    after["model.layers.0.up_proj.weight_scale"] = torch.ones(8, 1)
    del after["model.layers.0.up_proj.weight"]
    save_file(before, source / "model.safetensors")
    save_file(after, made / "model.safetensors")
    (source / "tokenizer.json").write_text("{}")
    (made / "tokenizer.json").write_text("{}")
    (made / "config.json").write_text(json.dumps({"quantization_config": {}, "eos": 1}))
    plan = {"model.layers.0.up_proj": {"bits": 4, "kl": 0.1}, "model.layers.1.up_proj": {"bits": 16, "kl": 0.0}}
    (made / "plan.json").write_text(json.dumps({"sites": plan}))
    header = {"checks": [["model.layers.0.up_proj", "4g32", 0.11, 0.1]]}
    save_file({"a": torch.zeros(1)}, made / "natprec" / "measurement.safetensors", {"natprec": json.dumps(header)})
    return checks.Trial(source, made, ["quantize", "--data", str(source / "text.txt"), "--engine", "vllm"], "")


def change(file: Path, **replaced: torch.Tensor | None) -> None:
    from safetensors.torch import load_file

    state = load_file(file) | {name.replace("__", "."): value for name, value in replaced.items() if value is not None}
    save_file({name: t for name, t in state.items() if replaced.get(name.replace(".", "__"), t) is not None}, file)


def test_nothing_is_found_where_all_is_right(trial: Any, checks: ModuleType) -> None:
    assert checks.findings(trial) == []


def test_a_tied_head_and_other_names_are_no_loss(trial: Any, checks: ModuleType) -> None:
    source, made = trial.source / "model.safetensors", trial.made / "model.safetensors"
    change(source, lm_head__weight=tensors()["model.embed_tokens.weight"])
    change(made, lm_head__weight=None, model__norm__weight=None, backbone__norm__weight=torch.ones(8))
    assert checks.findings(trial) == []


def test_weights_that_were_joined_and_became_codes_are_no_loss(trial: Any, checks: ModuleType) -> None:
    source, made = trial.source / "model.safetensors", trial.made / "model.safetensors"
    change(source, mixer__qk__weight=torch.rand(8, 16))
    parts = {f"mixer__{each}__weight_shape": torch.tensor([4, 16]) for each in "qk"}
    change(made, **parts, **{name.replace("_shape", "_packed"): torch.zeros(4, 2).int() for name in parts})
    assert [line for line in checks.findings(trial) if "not in the output" in line] == []


def test_everything_that_is_wrong_is_found(trial: Any, checks: ModuleType) -> None:
    source, made = trial.source, trial.made
    block = tensors()["model.layers.1.up_proj.weight"]
    change(source / "model.safetensors", mtp__layers__0__up_proj__weight=block, mtp__fc__weight=torch.rand(3, 3))
    change(made / "model.safetensors", model__norm__weight=torch.ones(8, dtype=torch.bfloat16))
    (source / "1_Pooling").mkdir()
    for name in ("1_Pooling/config.json", "modules.json", "chat_template.jinja"):
        (source / name).write_text("{}")
    named = checks.Trial(source, made, [*trial.arguments, "--kv", "8"], "chat_template.jinja was left out")
    (made / "config.json").write_text(
        '{"quantization_config": {}, "limits": [0.0, Infinity], "note": "NaN", "tie_word_embeddings": true}'
    )
    (made / "plan.json").write_text(json.dumps({"sites": {"a": {"bits": 4, "kl": 0.0}, "b": {"bits": 8, "kl": 0.1}}}))
    header = {"checks": [["a", "8g32", 4.39, 1.5e-5], ["b", "8g32", 1.0, 0.5]]}
    save_file({"a": torch.zeros(1)}, made / "natprec" / "measurement.safetensors", {"natprec": json.dumps(header)})
    assert checks.findings(named) == [
        "2 tensors of the input are not in the output, first mtp.fc.weight",
        "1 unquantized tensors have another dtype, first model.norm.weight F32 → BF16",
        "2 files are not in the output and not named, first 1_Pooling/config.json",
        "1 weights have few bits, and had no effect when measured, first a",
        "2 weights are planned as codes, but only 1 modules have any",
        "config.json holds Infinity, which is no JSON",
        "config.json ties the head to the embedding, but the output has a head of its own",
        "--kv 8 was asked for, and config.json says nothing of the cache",
        "Fisher says 4.4 of a at 8g32 where it is 1.5e-05",
    ]


@pytest.mark.parametrize(
    ("code", "timed", "verdict", "says"),
    [
        (2, [(0, "load model …"), (9, "natprec: no; do this")], "refused", "no; do this"),
        (2, [(0, "load model …"), (9, "text …"), (11, "natprec: no; do this")], "refused", "no; do this"),
        (2, [(0, "load model …"), (2, "text …"), (11, "natprec: no; do this")], "late", "no; do this"),
        (2, [(0, "load model …"), (11, "measure …"), (11, "natprec: no")], "late", "no"),
        (2, [(0, "natprec: no"), (1, "natprec: no")], "fault", "quantize: exit code 2: natprec: no"),
        (1, [(0, "Traceback"), (1, "KeyError: 1")], "fault", "quantize: exit code 1: KeyError: 1"),
        (3, [(0, "verify …")], "fault", "quantize: the promise is not kept"),
        (None, [(0, "verify …")], "fault", "quantize: it ran too long"),
    ],
)
def test_verdicts(code: int | None, timed: Any, verdict: str, says: str, cases: ModuleType, tmp_path: Path) -> None:
    row = cases.Row("c01")
    assert not cases.judged(row, cases.Ran(code, "", timed, 11.5), ["quantize"], tmp_path, 2.6)
    assert (row.verdict, row.says) == (verdict, [says])


def test_a_row_fits_a_terminal(cases: ModuleType, tmp_path: Path) -> None:
    script = tmp_path / "c01_a.py"
    script.write_text(
        '"""A.\n\nThen: natprec quantize --model FOLDER --out OUT; natprec generate OUT --prompt \'a b\'\n"""'
    )
    assert cases.commands(script) == [
        ["quantize", "--model", "FOLDER", "--out", "OUT"], ["generate", "OUT", "--prompt", "a b"],
    ]  # fmt: skip
    row = cases.Row("c" * 60, "fault", 123.456, 1.0, 0.5, ["a long sentence " * 12])
    assert max(map(len, row.text().splitlines())) <= 80
