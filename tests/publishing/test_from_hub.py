"""Models by Hub id and revision: what is read is recorded, and each way to fail has its own remedy."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from natprec.errors import ModelError
from natprec.evaluation.verification import Verification
from natprec.measurement import Measurement
from natprec.models.hub import is_hub_name
from natprec.models.loading import load_model
from natprec.solver import Plan
from natprec.utils.digests import checkpoint_digests
from tests.hub import Hub
from tests.publishing.test_push import NAME, pushed
from tests.run_command import natprec


def refusal(name: str) -> str:
    with pytest.raises(ModelError) as caught:
        load_model(name)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_the_commit_is_recorded_in_every_file(made: Path, hub: Hub) -> None:
    commit = hub.repositories["alice/tiny"].branches["main"]
    plan, found = Plan.load(made / "plan.json"), Verification.load(made / "verification.json")
    measured = Measurement.load(made / "natprec" / "measurement.safetensors").header
    assert plan.provenance is not None
    assert found.provenance is not None
    assert plan.provenance.model_revision == found.provenance.model_revision == measured.revision == commit
    assert found.files == checkpoint_digests(made)
    assert {"model.safetensors", "config.json"} <= found.files.keys()
    assert natprec("card", made, "--out", hub.folder / "card.md").code == 0
    assert commit in (hub.folder / "card.md").read_text()


def test_branches_tags_and_commits(hub: Hub, tiny_folder: Path) -> None:
    repository = hub.repositories["alice/tiny"]
    first = repository.branches["main"]
    repository.tags["v1"] = first
    second = repository.commit("main", "another", {"note.txt": hub.entry(b"x", "note.txt")}, [])
    assert {name: load_model(f"alice/tiny{name}").revision for name in ("", "@v1", f"@{first}", "@main")} == {
        "": second, "@v1": first, f"@{first}": first, "@main": second,
    }  # fmt: skip


def test_each_failure_has_its_own_remedy(hub: Hub, monkeypatch: pytest.MonkeyPatch, tiny_folder: Path) -> None:
    hub.add("dana/gated", tiny_folder, gated=True)
    hub.add("dana/private", tiny_folder, private=True)
    page, remedies = f"{hub.url}/dana/gated", {}
    for token in (None, "hf_bob", "hf_unknown"):
        monkeypatch.delenv("HF_TOKEN") if token is None else monkeypatch.setenv("HF_TOKEN", token)
        for name in ("dana/gated", "dana/private", "dana/missing", "alice/tiny@no-such"):
            remedies[token, name] = refusal(name)
    assert f"accept its terms at {page}, then run hf auth login" in remedies[None, "dana/gated"]
    assert f"your account 'bob' has no access; ask for it at {page}" in remedies["hf_bob", "dana/gated"]
    for name in ("dana/private", "dana/missing"):  # the Hub does not say which
        assert "check the spelling, or if it is private run hf auth login" in remedies[None, name]
        assert "your account 'bob'; check the spelling, or ask its owner" in remedies["hf_bob", name]
    assert "no revision 'no-such'; branches and tags: main" in remedies[None, "alice/tiny@no-such"]
    for name in ("dana/gated", "alice/tiny@no-such"):
        assert "does not accept your token; run hf auth login again" in remedies["hf_unknown", name]
    monkeypatch.setenv("HF_TOKEN", "hf_granted")
    assert load_model("dana/gated").revision == hub.repositories["dana/gated"].branches["main"]


def test_no_network(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    commit = load_model("alice/tiny").revision
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    assert load_model("alice/tiny").revision == commit, "from the cache"
    assert "http://127.0.0.1:9 cannot be reached" in refusal("alice/other")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert load_model("alice/tiny").revision == commit
    assert "not in the cache, and HF_HUB_OFFLINE forbids to ask the Hub; unset HF_HUB_OFFLINE" in refusal("alice/other")


def test_checkpoints_by_id(hub: Hub, checkpoint: Path, tmp_path: Path) -> None:
    pushed(checkpoint, "--tag", "t")
    said = natprec("generate", f"{NAME}@t", "--prompt", "abc", "--max-new-tokens", "3", "--greedy", "--json")
    here = natprec("generate", checkpoint, "--prompt", "abc", "--max-new-tokens", "3", "--greedy", "--json")
    assert json.loads(said.out)["text"] == json.loads(here.out)["text"]
    result = natprec(
        "inspect", "--model", "alice/tiny", "--plan", NAME, "--measurement", NAME, "--tokens", "256",
        "--sequence-length", "64", "--group-size", "32", "--json",
    )  # fmt: skip
    assert result.code == 0, result.err
    asked = answers(f"{NAME}@t", tmp_path)
    assert (asked["checkpoint"], asked["files"]) == (f"{NAME}@t", checkpoint_digests(checkpoint))
    assert asked["provenance"]["model_revision"] == hub.repositories["alice/tiny"].branches["main"]
    result = natprec("check", f"{NAME}@no-such", "--gpu", "h100")
    assert result.code == 2
    assert "no revision 'no-such'; branches and tags: main, t" in result.err


def answers(name: str, folder: Path) -> dict[str, Any]:
    """What natprec eval says of a checkpoint by id."""
    questions = folder / "questions.jsonl"
    questions.write_text('{"query": "a b", "choices": ["c", "d"], "gold": 0}\n' * 3)
    result = natprec("eval", name, "--model", "alice/tiny", "--tasks", questions, "--json")
    assert result.code == 0, result.err
    found: dict[str, Any] = json.loads(result.out)
    return found


def test_names_of_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here" / "folder").mkdir(parents=True)
    assert is_hub_name("owner/model@refs/pr/1")
    for name in ("here/folder", "./owner/model", "/owner/model", "owner/a/b", "model", "", "~/x"):
        assert not is_hub_name(name), name
