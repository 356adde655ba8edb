"""Every command from end to end on a tiny model, and the contract with scripts that call them."""

from __future__ import annotations

import json
import math
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

from natprec.evaluation import verify as judge
from tests.conftest import tiny_model
from tests.run_command import SMALL, left_behind, natprec

EPS = 2e-4
JUDGED = {
    "eps", "passed", "kl_mean", "kl_ci95", "kl_p99", "kl_predicted", "perplexity_reference", "perplexity_quantized",
    "top1_agreement", "tokens", "stored_bytes", "stored_bytes_reference", "bits_per_weight",
}  # fmt: skip


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory, tiny_folder: Path, text_file: Path) -> tuple[Path, Any]:
    """The output of one `natprec quantize --json`, and what it printed."""
    out = tmp_path_factory.mktemp("cli") / "out"
    result = natprec(
        "quantize", "--model", tiny_folder, "--eps", EPS, "--data", text_file, *SMALL, "--eval-tokens", 512,
        "--out", out, "--json",
    )  # fmt: skip
    assert result.code == 0, result.err
    return out, json.loads(result.out)  # nothing but one object


def test_quantize_writes_the_contract(done: tuple[Path, Any]) -> None:
    out, printed = done
    verification = json.loads((out / "verification.json").read_text())
    assert verification.keys() >= JUDGED
    assert verification["eps"] == EPS
    assert verification["passed"] is True
    low, high = verification["kl_ci95"]
    assert low <= verification["kl_mean"] <= high
    assert verification["kl_mean"] <= EPS
    assert verification["kl_predicted"] <= EPS
    assert verification["tokens"] == 512
    assert verification["corrections"] == 0
    judged = {name: value for name, value in verification.items() if name not in ("version", "checksum")}  # the file's
    assert {name: printed[name] for name in judged} == judged
    plan = json.loads((out / "plan.json").read_text())
    for choice in plan["sites"].values():
        assert choice["bits"] in range(2, 9) or (choice["bits"], choice["group_size"]) == (16, None)
        assert choice["symmetric"] is (None if choice["bits"] == 16 else True)
    assert left_behind(out.parent) == ["out"]
    assert (out / "model.safetensors").stat().st_mode & 0o044, "readable for others, as the umask says"


def test_the_checkpoint_is_an_ordinary_one(done: tuple[Path, Any]) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    out, _ = done
    assert json.loads((out / "config.json").read_text())["quantization_config"]["quant_method"] == "compressed-tensors"
    model = AutoModelForCausalLM.from_pretrained(out)
    ids = AutoTokenizer.from_pretrained(out)("abc def", return_tensors="pt")["input_ids"]
    assert model(input_ids=ids).logits.isfinite().all()


def test_the_steps_give_what_quantize_gives(
    done: tuple[Path, Any], tmp_path: Path, tiny_folder: Path, text_file: Path
) -> None:
    out, _ = done
    measurement, plan, again = tmp_path / "m", tmp_path / "plan.json", tmp_path / "again"
    result = natprec("measure", "--model", tiny_folder, "--data", text_file, *SMALL, "--out", measurement, "--json")
    # quantize keeps a part of the text for its verdict, measure alone does not: the files differ there
    assert result.code == 0, result.err
    assert json.loads(result.out)["sites"] == 15
    kept = out / "natprec" / "measurement.safetensors"
    result = natprec("solve", kept, "--eps", EPS, "--out", plan, "--json")
    assert result.code == 0, result.err
    written, theirs = json.loads(plan.read_text()), json.loads((out / "plan.json").read_text())
    differs = {name for name in written if written[name] != theirs[name]}
    looked_at = {"kl_joint", "joint_ci95"}  # solve has no model to look at
    assert differs <= {"provenance", "checksum", *looked_at}, "the command, and the time"
    assert json.loads(result.out) == {name: value for name, value in written.items() if name != "checksum"}
    result = natprec("apply", plan, "--model", tiny_folder, "--data", text_file, "--out", again, *SMALL[:4], "--json")
    assert result.code == 0, result.err
    written = json.loads(result.out)
    assert written["stored_bytes"] == judge.checkpoint_bytes(again)
    result = natprec(
        "verify", again, "--model", tiny_folder, "--eval-data", text_file, "--eval-tokens", 512,
        "--sequence-length", 64, "--json",
    )  # fmt: skip
    assert result.code == 0, result.err
    printed = json.loads(result.out)
    assert printed.keys() >= JUDGED
    assert printed["passed"] is True
    assert json.loads((again / "verification.json").read_text())["kl_mean"] == printed["kl_mean"]


@pytest.mark.parametrize("command", ["quantize", "measure"])
def test_a_dry_run_writes_nothing(
    command: str, tmp_path: Path, tiny_folder: Path, text_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    target = ("--eps", EPS) if command == "quantize" else ("--out", "m")
    result = natprec(command, "--model", tiny_folder, *target, "--data", text_file, *SMALL, "--dry-run", "--json")
    assert result.code == 0, result.err
    assert json.loads(result.out)["memory_bytes"] > 0
    assert left_behind(tmp_path) == []


def test_the_table_fits_a_terminal(
    tmp_path: Path, tiny_folder: Path, text_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    out = tmp_path / "out"
    result = natprec(
        "quantize", "--model", tiny_folder, "--eps", EPS, "--data", text_file, *SMALL, "--eval-tokens", 512,
        "--rounding", "rtn", "--out", out,
    )  # fmt: skip
    assert result.code == 0, result.err
    lines = result.out.splitlines()
    assert all(len(line) <= 100 for line in lines if not line.startswith(("written to", "run it: ")))
    for label in ("weights", "given", "at 16 bits", "stored", "KL predicted", "KL measured", "perplexity", "time"):
        assert any(line.startswith(label) for line in lines), result.out
    assert any(line.startswith("verdict") and "PASS" in line for line in lines)
    assert "forecast" in result.out
    assert "on disk" in result.out
    assert len(result.err.splitlines()) < 18, "one line per stage where standard error is no terminal"


def test_the_forecast_is_the_size_on_disk(tmp_path: Path, tiny_tokenizer: Any, text_file: Path) -> None:
    """Within 1 % once weights outweigh the configuration, whose part about the formats is not forecast."""
    model = tmp_path / "model"
    tiny_model(hidden_size=256, intermediate_size=1024, num_hidden_layers=2).save_pretrained(model)
    tiny_tokenizer.save_pretrained(model)
    result = natprec(
        "quantize", "--model", model, "--bits", 4.5, "--data", text_file, "--tokens", 128, "--eval-tokens", 128,
        "--sequence-length", 64, "--rounding", "rtn", "--out", tmp_path / "out", "--json",
    )  # fmt: skip
    assert result.code == 0, result.err
    printed = json.loads(result.out)
    assert printed["passed"] is None, "no tolerance was asked for"
    forecast = json.loads((tmp_path / "out" / "plan.json").read_text())["stored_bytes"]
    on_disk = sum(f.stat().st_size for f in (tmp_path / "out").glob("*") if f.is_file()) - sum(
        (tmp_path / "out" / name).stat().st_size for name in ("plan.json", "verification.json")
    )
    assert printed["stored_bytes"] == on_disk
    assert on_disk == pytest.approx(forecast, rel=0.01)
    assert printed["bits_per_weight"] <= 4.5


def test_a_tolerance_beside_a_size_holds_or_is_refused(tmp_path: Path, tiny_folder: Path, text_file: Path) -> None:
    out = tmp_path / "out"
    result = natprec(
        "quantize", "--model", tiny_folder, "--eps", 1e-7, "--bits", 3.0, "--data", text_file, *SMALL,
        "--eval-tokens", 128, "--rounding", "rtn", "--out", out,
    )  # fmt: skip
    assert result.code == 2, result.err
    assert "do not go together" in result.err
    assert left_behind(tmp_path) == ["out.partial"], "the measurement is kept"


def test_a_promise_that_fails_says_what_to_do(tmp_path: Path, tiny_folder: Path, text_file: Path) -> None:
    out = tmp_path / "out"
    judging = ("--eval-data", text_file, "--eval-tokens", 512)
    result = natprec(
        "quantize", "--model", tiny_folder, "--bits", 5.0, "--data", text_file, *SMALL, "--eval-tokens", 512,
        "--rounding", "rtn", "--out", out,
    )  # fmt: skip
    assert result.code == 0, result.err
    kl = json.loads((out / "verification.json").read_text())["kl_mean"]
    result = natprec("verify", out, "--model", tiny_folder, "--eps", 0.8 * kl, *judging)
    assert result.code == 3
    assert "FAIL" in result.out
    written = json.loads((out / "verification.json").read_text())
    assert (written["verdict"], written["passed"], written["first_verdict"]["verdict"]) == ("fail", False, "fail")
    result = natprec("verify", out, "--model", tiny_folder, "--eps", 2 * kl, *judging, "--confidence", 0.5, "--json")
    assert result.code == 0
    assert json.loads(result.out)["verdict"] == "pass"
    assert json.loads(result.out)["confidence"] == 0.5
    judged = json.loads(result.out)["kl_ci95"]
    between = (json.loads(result.out)["kl_mean"] + judged[1]) / 2
    result = natprec("verify", out, "--model", tiny_folder, "--eps", between, *judging, "--json")
    assert (result.code, json.loads(result.out)["verdict"]) == (0, "pass-within-noise")


def test_the_next_command_of_a_failure_keeps_the_promise(tmp_path: Path, tiny_folder: Path, text_file: Path) -> None:
    """A plan without margin, judged by less than it costs."""
    out, plan, again = tmp_path / "out", tmp_path / "plan.json", tmp_path / "again"
    result = natprec(
        "quantize", "--model", tiny_folder, "--eps", EPS, "--margin", 0, "--data", text_file, *SMALL,
        "--eval-tokens", 512, "--rounding", "rtn", "--out", out, "--json",
    )  # fmt: skip
    kl = json.loads(result.out)["kl_mean"]
    result = natprec("verify", out, "--model", tiny_folder, "--eps", 0.9 * kl, "--eval-data", text_file)
    assert result.code == 3
    advice = next(line for line in result.err.splitlines() if line.startswith("next: "))
    command = advice.removeprefix("next: natprec ").split(", then")[0].split()
    command[command.index("plan.json")] = str(plan)
    assert natprec(*command).code == 0
    result = natprec("apply", plan, "--model", tiny_folder, "--data", text_file, *SMALL[:4], "--out", again)
    assert result.code == 0, result.err
    result = natprec(
        "verify", again, "--model", tiny_folder, "--eval-data", text_file, "--eval-tokens", 512,
        "--sequence-length", 64, "--json",
    )  # fmt: skip
    assert result.code == 0, result.out
    assert json.loads(result.out)["kl_mean"] <= 0.9 * kl


@pytest.mark.parametrize("distortion", ["kl-top10", "loss"])
def test_another_distortion_is_promised_and_judged(
    distortion: str, tmp_path: Path, tiny_folder: Path, text_file: Path
) -> None:
    out = tmp_path / "out"
    result = natprec(
        "quantize", "--model", tiny_folder, "--bits", 5, "--data", text_file, *SMALL, "--eval-tokens", 512,
        "--rounding", "rtn", "--distortion", distortion, "--out", out, "--json",
    )  # fmt: skip
    assert result.code == 0, result.err
    printed = json.loads(result.out)
    assert printed["distortion"] == json.loads((out / "plan.json").read_text())["distortion"] == distortion
    assert printed["perplexity_reference"] > 1
    if distortion == "loss":
        ratio = printed["perplexity_quantized"] / printed["perplexity_reference"]
        assert printed["kl_mean"] == pytest.approx(math.log(ratio), abs=1e-6)
    result = natprec(
        "verify", out, "--model", tiny_folder, "--eval-data", text_file, "--eval-tokens", 512,
        "--sequence-length", 64, "--json",
    )  # fmt: skip
    assert result.code == 0, result.err
    assert json.loads(result.out)["kl_mean"] == pytest.approx(printed["kl_mean"], rel=1e-6)


def test_help_shows_examples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    result = natprec("quantize", "--help")
    assert result.code == 0
    assert "natprec quantize --model HuggingFaceTB/SmolLM2-135M --eps 0.01" in result.out
    assert all(len(line) <= 100 for line in result.out.splitlines())


def test_the_version_names_what_it_runs_beside() -> None:
    result = natprec("--version")
    assert result.code == 0
    assert result.out == (
        f"natprec {version('natprec')} (torch {version('torch')}, transformers {version('transformers')}, "
        f"compressed-tensors {version('compressed-tensors')})\n"
    )
