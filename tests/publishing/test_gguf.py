"""A GGUF file on the Hub: pushed with its own card, pulled and judged again to the last digit."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.hub import Hub, served
from tests.publishing.conftest import made_hub, turned_to, verification
from tests.publishing.test_card import front_of
from tests.publishing.test_from_hub import answers
from tests.publishing.test_push import pushed, refused
from tests.run_command import SMALL, natprec

NAME = "alice/tiny-gguf"


@pytest.fixture(scope="module")
def gguf(tmp_path_factory: pytest.TempPathFactory, original: Path, text_file: Path) -> Path:
    place = tmp_path_factory.mktemp("gguf")
    with pytest.MonkeyPatch.context() as patch, served(made_hub(place / "hub", original)) as hub:
        turned_to(hub, place / "cache", patch)
        patch.setattr("natprec.utils.matmul.multiplies_bfloat16", lambda device: False)
        made = natprec(
            "quantize", "--model", "alice/tiny", "--bits", "6", "--engine", "llama.cpp", "--data", text_file, *SMALL,
            "--eval-tokens", 512, "--rounding", "rtn", "--out", place / "tiny-gguf",
        )  # fmt: skip
    assert made.code == 0, made.err
    return place / "tiny-gguf"


@pytest.mark.parametrize("xet", [False, True], ids=["lfs", "xet"])
def test_push_and_pull(
    xet: bool, gguf: Path, original: Path, text_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if xet:
        pytest.importorskip("hf_xet")
    with served(made_hub(tmp_path / "hub", original, xet=xet)) as hub:
        turned_to(hub, tmp_path / "cache", monkeypatch)
        round_trip(hub, gguf, text_file)
        asked = answers(NAME, tmp_path)
        assert asked["files"] == verification(gguf)["files"]
        refused(natprec("eval", NAME, "--model", "alice/tiny", "--tasks", tmp_path / "questions.jsonl", "--backend",
                        "natprec"), "--backend transformers")  # fmt: skip


def round_trip(hub: Hub, gguf: Path, text: Path) -> None:
    said = pushed(gguf, "--report", name=NAME)
    files = hub.repositories[NAME].commits[said["commit"]].files
    (weights,) = (name for name in files if name.endswith(".gguf"))
    assert ("xet" in files[weights]) == hub.xet
    card = hub.content(files["README.md"]).decode()
    front = front_of(card)
    assert (front["library_name"], front["base_model"]) == ("gguf", "alice/tiny")
    assert "gguf" in front["tags"]
    assert "compressed-tensors" not in front["tags"]
    assert f"llama-server -hf {NAME}" in card
    assert f"ollama run hf.co/{NAME}" in card
    assert "from transformers" not in card
    result = natprec("verify", NAME, "--model", "alice/tiny", "--eval-data", text, "--json")
    assert result.code == 0, result.err
    again, before = json.loads(result.out), verification(gguf)
    names = ("kl_mean", "kl_p99", "files", "perplexity_quantized", "stored_bytes")
    assert {name: again[name] for name in names} == {name: before[name] for name in names}
    assert pushed(gguf, "--report", name=NAME)["new"] is False
