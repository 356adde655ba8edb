"""No file that is written or pushed names a folder, user or host of the machine it was made on."""

from __future__ import annotations

import shutil
import socket
from pathlib import Path

import pytest

from natprec.utils.marks import refuse_foreign
from tests.hub import Hub
from tests.publishing.conftest import changed_home
from tests.publishing.test_push import NAME, pushed
from tests.run_command import SMALL, natprec
from tests.utils.test_records import HOST, USER, files, refuse_places


def test_nothing_that_is_pushed_names_the_machine(
    hub: Hub, tiny_folder: Path, text_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model and a text in a user's folder; a checkpoint, a ladder, their cards and what goes up."""
    home = changed_home(tmp_path / USER, monkeypatch)
    monkeypatch.setattr(socket, "gethostname", lambda: HOST)
    shutil.copytree(tiny_folder, home / "models" / "tiny")
    shutil.copy(text_file, home / "text.txt")
    common = ("--model", home / "models" / "tiny", "--data", home / "text.txt", *SMALL, "--eval-tokens", 512,
              "--rounding", "rtn")  # fmt: skip
    for name, target in {"one": ("--eps", "0.5"), "several": ("--ladder", "5,7")}.items():
        result = natprec("quantize", *common, *target, "--out", home / name)
        assert result.code == 0, result.err
        assert natprec("card", home / name).code == 0
    (home / "questions.jsonl").write_text('{"query": "a b", "choices": ["c", "d"], "gold": 0}\n' * 3)
    result = natprec("eval", home / "one", "--model", home / "models" / "tiny", "--tasks", home / "questions.jsonl",
                     "--out", home / "one" / "eval.json")  # fmt: skip
    assert result.code == 0, result.err
    assert natprec("report", home / "one", "--out", home / "one" / "report.html").code == 0
    assert natprec("card", home / "one").code == 0
    written = files(home / "one", home / "several")
    assert {"README.md", "ladder.json", "ladder.svg", "plan.json", "verification.json", "eval.json", "report.html"} <= {
        Path(name).name for name in written
    }
    refuse_places(written, home)
    refuse_foreign(home / "several")
    for name in ("one", "several"):
        said = pushed(home / name, "--report", name=f"{NAME}-{name}")
        assert said["base_model"] is None
        repository = hub.repositories[f"{NAME}-{name}"]
        for commit in repository.commits.values():
            refuse_places({path: hub.content(entry) for path, entry in commit.files.items()}, home)
    said = pushed(home / "one", "--base-model", "alice/tiny", name=f"{NAME}-named")
    assert said["base_model"] == f"alice/tiny@{hub.repositories['alice/tiny'].branches['main']}"
    files_of = hub.repositories[f"{NAME}-named"].commits[said["commit"]].files
    card = hub.content(files_of["README.md"]).decode()
    assert "base_model: alice/tiny" in card
    assert "as whoever published it says" in card
