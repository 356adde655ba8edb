"""A Hub on this machine, a tiny model on it, and a checkpoint that was quantized from there."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.hub import Hub, User, served
from tests.run_command import SMALL, natprec

USERS = {
    "hf_writer": User("alice"),
    "hf_reader": User("alice", role="read"),
    "hf_bob": User("bob"),
    "hf_granted": User("carol", granted=True),
}

BASE_CARD = """---
license: apache-2.0
language: en
pipeline_tag: text-generation
---

# tiny
"""


def turned_to(hub: Hub, cache: Path, patch: pytest.MonkeyPatch, token: str | None = "hf_writer") -> None:
    """Let huggingface_hub, which reads its settings when it is imported, speak with this Hub."""
    from huggingface_hub import constants

    patch.setattr(constants, "ENDPOINT", hub.url)
    patch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.url + "/{repo_id}/resolve/{revision}/{filename}")
    patch.setattr("transformers.utils.hub._hf_api", None)  # it keeps the first one, with its address
    patch.setattr(constants, "HF_HUB_CACHE", str(cache))
    patch.setattr(constants, "HF_HUB_DISABLE_XET", not hub.xet)
    patch.setattr(constants, "HF_TOKEN_PATH", str(cache / "token"))
    patch.delenv("HF_HUB_OFFLINE", raising=False)
    patch.setattr(constants, "HF_HUB_OFFLINE", False)
    patch.delenv("HUGGING_FACE_HUB_TOKEN", raising=False)
    if token is None:
        patch.delenv("HF_TOKEN", raising=False)
    else:
        patch.setenv("HF_TOKEN", token)


@pytest.fixture(scope="session")
def original(tmp_path_factory: pytest.TempPathFactory, tiny_folder: Path) -> Path:
    """The tiny model with a card and its licence's text."""
    folder = Path(shutil.copytree(tiny_folder, tmp_path_factory.mktemp("original") / "tiny"))
    (folder / "README.md").write_text(BASE_CARD)
    (folder / "LICENSE").write_text("Apache License\n")
    return folder


def made_hub(folder: Path, original: Path, **settings: Any) -> Hub:
    """A Hub that holds the original; the same commit each time."""
    folder.mkdir(parents=True, exist_ok=True)
    hub = Hub(folder, dict(USERS), **settings)
    hub.add("alice/tiny", original)
    return hub


@pytest.fixture
def hub(tmp_path: Path, original: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with served(made_hub(tmp_path / "hub", original)) as hub:
        turned_to(hub, tmp_path / "cache", monkeypatch)
        yield hub


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory, original: Path, text_file: Path) -> Path:
    """A checkpoint of `alice/tiny` with a tolerance that it keeps. Read only."""
    place = tmp_path_factory.mktemp("made")
    with pytest.MonkeyPatch.context() as patch, served(made_hub(place / "hub", original)) as hub:
        turned_to(hub, place / "cache", patch)
        patch.setattr("natprec.utils.matmul.multiplies_bfloat16", lambda device: False)
        result = natprec(
            "quantize", "--model", "alice/tiny@main", "--eps", "0.5", "--data", text_file, *SMALL, "--eval-tokens", 512,
            "--rounding", "rtn", "--out", place / "tiny-natprec",
        )  # fmt: skip
    assert result.code == 0, result.err
    return place / "tiny-natprec"


@pytest.fixture
def checkpoint(made: Path, tmp_path: Path) -> Path:
    """A copy that a test may change."""
    return Path(shutil.copytree(made, tmp_path / "tiny-natprec"))


def verification(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "verification.json").read_text())
    return found


def changed_home(home: Path, patch: pytest.MonkeyPatch) -> Path:
    """A user's folder, by the user's name."""
    home.mkdir()
    patch.setenv("HOME", str(home))
    patch.setenv("LOGNAME", home.name)
    return home
