"""A server's steady state: tokens by its own counts, and every way in which it can fail."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path
from typing import Any

import pytest

from tests.energy.fakes import write_log
from tests.energy.openai import serving
from tests.run_command import natprec

QUICK = ("--prompt-tokens", 20, "--new-tokens", 20, "--min-seconds", 0.4)


@pytest.mark.parametrize("tokens_per_chunk", [1, 4])
def test_the_rate_is_the_servers(tmp_path: Path, tokens_per_chunk: int) -> None:
    log = write_log(tmp_path / "meter.csv", time.time() - 1, time.time() + 90, 80.0, 0.02)
    with serving(seconds=0.02, tokens_per_chunk=tokens_per_chunk) as (url, kept):
        done = natprec("energy", "--endpoint", url, "--batch", "1,3", *QUICK, "--counter", log, "--json")
    assert done.code == 0, done.err
    found = json.loads(done.out)
    assert found["run"]["model"] == "served"
    one, three = found["rows"]
    for row in (one, three):
        assert (row["of"], row["phase"], row["windows"]) == ("server", "steady", 5)
        assert row["prompt_tokens"] == pytest.approx(20, abs=2), "words become tokens as the server counts them"
        assert row["watts"] == pytest.approx(80, rel=0.01)
        rate = row["batch"] * tokens_per_chunk / 0.02
        assert 0.5 * rate < row["tokens_per_second"] < 1.02 * rate
    prompts = [asked["prompt"] for asked in kept["asked"]]
    assert len(set(prompts[3:])) == len(prompts[3:]), "no server has seen a prompt before"
    assert all(asked["ignore_eos"] for asked in kept["asked"])


def test_a_server_that_takes_the_standards_fields_only(tmp_path: Path) -> None:
    with serving(strict=True) as (url, kept):
        done = natprec("energy", "--endpoint", url, "--batch", "1", *QUICK, "--counter", "none", "--json")
    assert done.code == 0, done.err
    row = json.loads(done.out)["rows"][0]
    assert row["joules_per_token"] is None
    assert row["joules_per_token_interval"] is None
    assert "an ESTIMATE needs the server's GPU (--device cuda:0)" in row["refused"]
    assert "ignore_eos" not in kept["asked"][-1]


def test_the_folder_of_the_model_gives_floors_and_no_estimate_of_an_unknown_device(tiny_folder: Path) -> None:
    with serving() as (url, _):
        done = natprec("energy", tiny_folder, "--endpoint", url, "--batch", "1", *QUICK, "--counter", "none", "--json")
    row = json.loads(done.out)["rows"][0]
    assert row["floor"]["landauer_joules"] > 0
    assert row["floor"]["bytes_joules"] is None, "a cache may hold so small a model"
    assert row["joules_per_token_interval"] is None


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"status": 500}, "it answers 500: .*out of memory"),
        ({"status": 404}, "it answers 404"),
        ({"no_usage": True}, "no usage counts"),
        ({"no_models": True}, "lists no model"),
        ({"error_inside": True}, "answers with an error: .*gave up"),
        ({"fails_after": 4}, "it answers 500: .*out of memory"),
    ],
)
def test_servers_that_fail(settings: dict[str, Any], words: str) -> None:
    with serving(**settings) as (url, _):
        done = natprec("energy", "--endpoint", url, "--batch", "2", *QUICK, "--counter", "none")
    assert done.code == 2
    assert re.search(words, done.err.splitlines()[-1]), done.err
