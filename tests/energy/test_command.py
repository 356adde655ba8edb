"""`natprec energy` from end to end on a tiny model, and the contract with scripts that call it."""

from __future__ import annotations

import json
import re
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from natprec.energy.anchors import FILE
from natprec.formats import integer
from tests.arrange import subject
from tests.energy.fakes import fake_nvml, write_log
from tests.run_command import natprec
from tests.runtime.test_load import written

QUICK = ("--batch", "1,2", "--prompt-tokens", 8, "--new-tokens", 5, "--min-seconds", 0.2)
ROW = {
    "phase", "batch", "tokens_per_second", "watts", "joules_per_token", "joules_per_token_ci95", "tokens_per_wh",
    "kwh_per_million_tokens", "floor",
}  # fmt: skip
JOULES = re.compile(r"joule|\bJ\b|J/", re.IGNORECASE)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer: Any) -> Path:
    made = subject(tiny_tokenizer, vocab_size=512, max_position_embeddings=64)
    return written(tmp_path_factory.mktemp("energy") / "quantized", made, integer(4, 32), "vllm")


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer: Any) -> Path:
    out = tmp_path_factory.mktemp("energy") / "original"
    subject(vocab_size=512, max_position_embeddings=64).model.save_pretrained(out)
    tiny_tokenizer.save_pretrained(out)
    return out


@pytest.fixture(scope="module")
def estimated(folder: Path, original: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("energy") / "run.json"
    done = natprec("energy", folder, "--model", original, *QUICK, "--counter", "none", "--out", out)
    assert done.code == 0, done.err
    (out.parent / "shown.txt").write_text(done.out)
    return out


@pytest.fixture
def log(tmp_path: Path) -> Path:
    """A meter that shows 80 W, from now into the future."""
    return write_log(tmp_path / "meter.csv", time.time() - 1, time.time() + 90, 80.0, 0.02)


def test_a_rate_and_a_power(tmp_path: Path) -> None:
    """T20's two lines, to three digits."""
    for rate, watts, tokens, kwh in ((20, 450, 160.0, 6.25), (1000, 2400, 1500.0, 0.667)):
        done = natprec("energy", "--rate", rate, "--watts", watts, "--json")
        found = json.loads(done.out)
        assert done.code == 0
        assert found["source"] == "arithmetic"
        assert (found["counter"], found["idle_watts"], found["rows"][0]["floor"]) == (None, None, None)
        assert found["rows"][0].keys() >= ROW
        assert found["rows"][0]["tokens_per_wh"] == pytest.approx(tokens, rel=5e-4)
        assert found["rows"][0]["kwh_per_million_tokens"] == pytest.approx(kwh, rel=5e-4)
    done = natprec(
        "energy", "--rate", 20, "--watts", 450, "--tariff", "€0.30/kWh", "--grid", "DE", "--pue", 1.5, "--json"
    )
    row = json.loads(done.out)["rows"][0]
    assert row["cost_per_million"] == {"value": pytest.approx(6.25 * 1.5 * 0.3), "currency": "EUR"}
    assert row["co2_grams_per_million"] == pytest.approx(6.25 * 1.5 * 381)
    assert row["kwh_per_million_tokens"] == 6.25, "the building's share is in money and CO2 alone"


def test_without_a_counter_every_joule_says_estimate(estimated: Path) -> None:
    shown = (estimated.parent / "shown.txt").read_text()
    lines = [line for line in shown.splitlines() if JOULES.search(line)]
    assert len(lines) > 5
    assert [line for line in lines if "ESTIMATE" not in line] == []
    assert sum("not ranked" in line for line in shown.splitlines()) == 4
    found = json.loads(estimated.read_text())
    assert found["source"] == "ESTIMATE"
    assert found["counter"] is None
    assert found["idle_watts"] is None
    assert len(found["rows"]) == 8
    for row in found["rows"]:
        assert row.keys() >= ROW
        assert row["source"] == "ESTIMATE"
        for figure in ("watts", "joules_per_token", "joules_per_token_ci95", "tokens_per_wh", "kwh_per_million_tokens"):
            assert row[figure] is None
        low, high = row["joules_per_token_interval"]
        assert 0 < low < high
        assert row["windows"] == 5
        assert row["floor"]["landauer_joules"] < low
    assert {each["verdict"] for each in found["comparison"]} == {"not ranked"}
    assert all(each["joules_ratio"] is None for each in found["comparison"])
    assert all(each["source"] and each["basis"] in ("read", "transcribed", "derived") for each in found["assumptions"])


def test_nothing_of_the_machine_is_passed_on(estimated: Path, folder: Path) -> None:
    assert str(folder.parent) not in estimated.read_text()


def test_a_log_is_measured_and_a_replay_gives_the_same_bytes(folder: Path, log: Path, tmp_path: Path) -> None:
    out = tmp_path / "run.json"
    done = natprec("energy", folder, *QUICK, "--counter", log, "--out", out, "--json")
    assert done.code == 0, done.err
    assert done.out == out.read_text()
    found = json.loads(done.out)
    assert found["source"] == "measured"
    assert (found["counter"]["kind"], found["counter"]["scope"], found["counter"]["excluded"]) == ("csv", "wall", [])
    assert found["idle_watts"] == pytest.approx(80, rel=1e-3)
    for row in found["rows"]:
        assert row["watts"] == pytest.approx(80, rel=1e-3)
        assert row["watts"] / row["tokens_per_second"] == pytest.approx(row["joules_per_token"], rel=1e-9)
        assert row["tokens_per_wh"] == pytest.approx(3600 / row["joules_per_token"])
        assert row["joules_per_token_interval"] is None
        assert abs(row["joules_per_token_net"]) < 0.01 * row["joules_per_token"]
        low, high = row["joules_per_token_ci95"]
        assert low < row["joules_per_token"] < high
    for number in range(2):
        again = natprec("energy", "--replay", out, "--counter", log, "--out", tmp_path / f"{number}.json", "--json")
        assert again.code == 0, again.err
        assert (tmp_path / f"{number}.json").read_bytes() == out.read_bytes()
    shown = natprec("energy", "--replay", out, "--counter", log).out
    assert "ESTIMATE" not in shown
    assert "measured by csv (meter.csv): wall" in shown


def live(monkeypatch: pytest.MonkeyPatch, watts: float, ends_after: float = 1e9) -> None:
    """A stand-in for NVML: millijoules of a known power, renewed every 20 ms, reset after some seconds."""
    start = time.monotonic()

    def millijoules() -> int:
        seconds = time.monotonic() - start
        return 0 if seconds > ends_after else round(1000 * (500 + watts * 0.02 * (seconds // 0.02)))

    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setitem(sys.modules, "pynvml", fake_nvml(energy=millijoules))


def test_a_live_counter(folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    live(monkeypatch, 120.0)
    done = natprec("energy", folder, *QUICK, "--counter", "nvml", "--min-seconds", 1, "--json", "--out", tmp_path / "r")
    assert done.code == 0, done.err
    found = json.loads(done.out)
    assert (found["source"], found["counter"]["kind"], found["counter"]["scope"]) == ("measured", "nvml", "gpu")
    assert "the work is done by the CPU" in found["counter"]["notes"][0]
    assert found["idle_watts"] == pytest.approx(120, rel=0.05)
    assert all(row["watts"] == pytest.approx(120, rel=0.05) for row in found["rows"])
    assert natprec("energy", "--replay", tmp_path / "r", "--json").out == done.out


def test_a_counter_that_is_reset_gives_null(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    live(monkeypatch, 120.0, ends_after=5.0)
    done = natprec("energy", folder, *QUICK, "--counter", "nvml", "--min-seconds", 0.5, "--json")
    assert done.code == 0, done.err
    found = json.loads(done.out)
    for row in found["rows"]:
        assert row["joules_per_token"] is row["watts"] is row["tokens_per_wh"] is None
        assert row["tokens_per_second"] > 0
    assert "its total falls" in found["refused"][0]


def test_a_run_without_a_counter_is_computed_again_with_a_log(estimated: Path, tmp_path: Path) -> None:
    run = json.loads(estimated.read_text())["run"]
    windows = [window for part in run["parts"] for window in part["windows"]]
    start, stop = min(each["start"] for each in windows), max(each["stop"] for each in windows)
    log = write_log(tmp_path / "later.csv", start - 60, stop + 60, 45.0, 0.02, "watts")
    done = natprec("energy", "--replay", estimated, "--counter", log, "--scope", "node", "--json")
    assert done.code == 0, done.err
    found = json.loads(done.out)
    assert found["source"] == "measured"
    assert found["counter"]["scope"] == "node"
    assert all(row["watts"] == pytest.approx(45, rel=1e-3) for row in found["rows"])
    assert all(row["joules_per_token_interval"] is None for row in found["rows"])
    assert {each["verdict"] for each in found["comparison"]} <= {"less", "more", "not distinguished"}
    own = natprec("energy", "--replay", estimated, "--json")
    assert own.out == estimated.read_text(), "without a counter a replay gives what the run itself found"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--counter", "nvml", "--device", "cuda"), r"counter 'nvml' is not there: .*(pynvml|NVML).*--counter none"),
        (("--counter", "no.csv"), "counter 'no.csv' does not exist"),
        (("--batch", "0"), "batch 0: a batch has 1 sequence or more"),
        (("--batch", "1,x"), "batch '1,x': give whole numbers"),
        (("--new-tokens", "1"), "new-tokens 1: decoding needs 2 or more"),
        (("--pue", "0.9"), "pue 0.9: a building takes no less"),
        (("--tariff", "0.30/kWh"), r"tariff '0.30/kWh' names no currency; give, for example, '0.30 EUR/kWh'"),
        (("--tariff", "cheap"), "tariff 'cheap': give a price, a currency and a unit"),
        (("--tariff=-1 EUR/kWh",), "a price is 0 or more"),
        (("--grid", "XX"), "unknown grid code 'XX'; give grams of CO2 per kWh as a number, or one of CN, DE"),
        (("--grid=-3",), "grams of CO2 per kWh are 0 or more"),
        (("--idle", "nan"), "idle nan: give a positive number"),
        (("--idle", "measure"), "unknown idle 'measure'; did you mean 'measured'"),
        (("--scope", "plug"), "unknown scope 'plug'"),
        (("--kelvin", "0"), "kelvin 0.0: give a positive number"),
        (("--min-seconds", "0"), "min-seconds 0.0: give a positive number"),
        (("--rate", "5"), "exclude each other"),
        (("--prompt-tokens", "63", "--new-tokens", "2"), "exceed the context of this model, 64"),
        (("--inspection", "no.json"), "inspection 'no.json' cannot be read"),
        (("--costs", "--counter", "none", "--json"), "costs are measured, and there is no counter"),
        (("--costs",), "--costs writes a table; say where with --out|there is no counter"),
    ],
)
def test_bad_input(folder: Path, arguments: tuple[str, ...], words: str) -> None:
    done = natprec("energy", folder, *arguments)
    assert done.code == 2
    assert done.out == ""
    assert re.search(words, done.reason), done.reason


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), "nothing to measure: name a checkpoint or model"),
        (("--rate", "5"), "--rate and --watts go together"),
        (("--rate", "0", "--watts", "3"), "rate 0.0: give a positive number"),
        (("--rate", "5", "--watts", "nan"), "watts nan: give a positive number"),
        (("--check", "no.json"), "published rows 'no.json' cannot be read"),
        (("--replay", "no.json", "--counter", "x.csv"), "'no.json' does not exist"),
        (("--endpoint", "ftp://x"), "is no address"),
        (("--endpoint", "http://[1"), "is no address"),
        (("--endpoint", "http://a:99999"), "is no address"),
        (("--endpoint", "http://127.0.0.1:9"), "cannot be read .*start the server on this host"),
    ],
)
def test_bad_input_without_a_model(arguments: tuple[str, ...], words: str, tmp_path: Path) -> None:
    done = natprec("energy", *arguments)
    assert done.code == 2
    assert re.search(words, done.reason), done.reason


def test_replays_that_are_refused(estimated: Path, log: Path, tmp_path: Path) -> None:
    done = natprec("energy", "--replay", estimated, "--counter", write_log(tmp_path / "o.csv", 0, 60, 1.0, 0.1))
    assert done.code == 2
    assert "it covers 0.000 to 60.000 s" in done.reason
    done = natprec("energy", "--replay", estimated, "--counter", "nvml")
    assert "computed again from a meter's FILE.csv" in done.reason
    value = json.loads(estimated.read_text())
    value["run"]["parts"][0]["windows"][0]["stop"] += 1
    (tmp_path / "changed.json").write_text(json.dumps(value))
    done = natprec("energy", "--replay", tmp_path / "changed.json", "--counter", log)
    assert "is not what was written" in done.reason
    for joules in (-1.0, 0.0, float("nan")):
        value = json.loads(estimated.read_text())
        value["run"]["parts"][0]["windows"][0]["joules"] = joules
        del value["checksum"]
        (tmp_path / "changed.json").write_text(json.dumps(value))
        done = natprec("energy", "--replay", tmp_path / "changed.json")
        assert done.code == 2
        assert re.search(r"joules is|no number of JSON", done.reason), done.reason
    for field, made_up, words in (
        ("idle", "much", "idle is 'much', and must be measured, ignore or watts"), ("parts", [], "has no parts"),
    ):  # fmt: skip
        value = json.loads(estimated.read_text())
        value["run"][field] = made_up
        del value["checksum"]
        (tmp_path / "changed.json").write_text(json.dumps(value))
        assert words in natprec("energy", "--replay", tmp_path / "changed.json").reason
    value = json.loads(estimated.read_text())
    value["run"]["parts"][0]["windows"] = []
    del value["checksum"]
    (tmp_path / "changed.json").write_text(json.dumps(value))
    assert "has no windows of prefill" in natprec("energy", "--replay", tmp_path / "changed.json").reason
    (tmp_path / "plan.json").write_text('{"eps_solved": 1}')
    assert (
        "is a plan, and a run of natprec energy is wanted"
        in natprec("energy", "--replay", tmp_path / "plan.json").reason
    )


def test_published_rows_lie_above_the_floors(tmp_path: Path) -> None:
    done = natprec("energy", "--check", FILE, "--json")
    found = json.loads(done.out)
    assert done.code == 0
    assert found["rows"] == found["consistent"] == found["above_floors"] > 20
    assert 0 < found["median_share_of_bytes_floor"] < found["largest_share_of_bytes_floor"] < 0.2
    assert f"{found['rows']} of {found['rows']} rows lie above the floors" in natprec("energy", "--check", FILE).out
    rows = json.loads(FILE.read_text())
    rows["rows"][3]["energy_per_token_joules"] /= 1000
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    done = natprec("energy", "--check", tmp_path / "rows.json", "--json")
    found = json.loads(done.out)
    assert done.code == 3
    assert [each["row"] for each in found["faults"]] == [3]
    assert found["consistent"] == found["above_floors"] == found["rows"] - 1
    for value, words in ((-1.0, "energy_per_token_joules is -1.0"), (float("nan"), "no number of JSON"), (0, "is 0")):
        rows["rows"][3]["energy_per_token_joules"] = value
        (tmp_path / "rows.json").write_text(json.dumps(rows))
        done = natprec("energy", "--check", tmp_path / "rows.json")
        assert done.code == 2
        assert words in done.reason
    del rows["rows"][3]["energy_per_token_joules"]
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    assert "lacks 'energy_per_token_joules'" in natprec("energy", "--check", tmp_path / "rows.json").reason


def test_another_original_is_refused(folder: Path, tiny_folder: Path) -> None:
    done = natprec("energy", folder, "--model", tiny_folder, *QUICK, "--counter", "none", "--idle", "ignore")
    assert done.code == 2
    assert "name the model that it was made from" in done.reason
    assert "prefill" not in done.err, "minutes before it is needed"
    done = natprec("energy", folder, "--model", "./nowhere", *QUICK, "--counter", "none", "--idle", "ignore")
    assert "no such folder or file" in done.reason


def test_what_exists_is_not_written_over(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.json").write_text("{}")
    done = natprec("energy", folder, "--out", tmp_path / "mine.json")
    assert "exists; choose another or add --overwrite" in done.reason
    done = natprec("energy", folder, "--out", tmp_path / "mine.json", "--overwrite")
    assert "is no run of energy of natprec's" in done.reason


def test_costs_by_format_and_shape(folder: Path, log: Path, tmp_path: Path) -> None:
    out = tmp_path / "costs.toml"
    quick = ("--batch", "1", "--min-seconds", 0.2, "--counter", log)
    done = natprec("energy", folder, "--costs", *quick, "--out", out, "--json")
    assert done.code == 0, done.err
    table = json.loads(done.out)
    assert (table["source"], table["unit"], table["scope"]) == ("measured", "joules", "wall")
    kinds = {(row["weight"], row["rows"], row["columns"], row["tokens"]) for row in table["rows"]}
    assert len(kinds) == len(table["rows"]) >= 4
    assert any(row["weight"] == "int4-g32" for row in table["rows"])
    for row in table["rows"]:
        assert row["joules"] == pytest.approx(80 * row["seconds"], rel=0.01)
    from natprec.energy.constants import tomllib

    assert out.read_text().startswith("# natprec energy --costs\n")
    assert tomllib.loads(out.read_text())["rows"] == [
        {name: value for name, value in row.items() if value is not None} for row in table["rows"]
    ]
