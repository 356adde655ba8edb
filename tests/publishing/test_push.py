"""A push is one commit, whole or absent, and what comes back is what was sent."""

from __future__ import annotations

import errno
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from natprec.publishing import push
from natprec.publishing.vouch import refuse_private
from tests.hub import Hub, served
from tests.publishing.conftest import made_hub, turned_to, verification
from tests.publishing.test_card import changed, front_of
from tests.run_command import SMALL, Result, natprec

NAME = "alice/tiny-natprec"


def pushed(folder: Path, *options: object, name: str = NAME) -> dict[str, Any]:
    result = natprec("push", folder, name, *options, "--json")
    assert result.code == 0, result.err
    value: dict[str, Any] = json.loads(result.out)
    return value


def refused(result: Result, *words: str) -> None:
    assert result.code == 2, result.err
    for word in words:
        assert word in result.err
    assert len([line for line in result.err.splitlines() if line.startswith("natprec: ")]) == 1


def round_trip(hub: Hub, folder: Path, text: Path, cache: Path) -> None:
    """Push, pull, verify and load by id and tag."""
    import torch
    from transformers import AutoModelForCausalLM

    said = pushed(folder, "--tag", "eps-0.5")
    repository = hub.repositories[NAME]
    assert repository.tags == {"eps-0.5": said["commit"]} == {"eps-0.5": repository.branches["main"]}
    assert len(repository.commits) == 2, "the Hub's first one, and ours"
    assert not said["private"]
    assert set(said["files"]["main"]) == set(repository.commits[said["commit"]].files)
    result = natprec("verify", f"{NAME}@eps-0.5", "--model", "alice/tiny", "--eval-data", text, "--json")
    assert result.code == 0, result.err
    again = json.loads(result.out)
    assert {name: again[name] for name in ("kl_mean", "kl_p99", "files")} == {
        name: verification(folder)[name] for name in ("kl_mean", "kl_p99", "files")
    }
    ids = torch.arange(24)[None]
    with torch.no_grad():
        here = AutoModelForCausalLM.from_pretrained(folder)(ids).logits
        there = AutoModelForCausalLM.from_pretrained(NAME, revision="eps-0.5", cache_dir=cache)(ids).logits
    assert float((here - there).abs().max()) == 0.0
    assert pushed(folder, "--tag", "eps-0.5")["new"] is False
    assert len(repository.commits) == 2, "the same files make no commit"


def test_push_and_pull_by_lfs(hub: Hub, checkpoint: Path, text_file: Path, tmp_path: Path) -> None:
    round_trip(hub, checkpoint, text_file, tmp_path / "other")


def test_push_and_pull_by_xet(
    checkpoint: Path, original: Path, text_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("hf_xet")
    with served(made_hub(tmp_path / "hub", original, xet=True)) as hub:
        turned_to(hub, tmp_path / "cache", monkeypatch)
        round_trip(hub, checkpoint, text_file, tmp_path / "other")
        head = hub.repositories[NAME].branches["main"]
        assert "xet" in hub.repositories[NAME].commits[head].files["model.safetensors"]


def test_a_hub_without_xet(hub: Hub, checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("hf_xet")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", False)
    refused(natprec("push", checkpoint, NAME), "set HF_HUB_DISABLE_XET=1")
    assert len(hub.repositories[NAME].commits) == 1


def test_the_card_and_the_licence_go_along(hub: Hub, checkpoint: Path) -> None:
    said = pushed(checkpoint, "--private")
    repository = hub.repositories[NAME]
    files = repository.commits[said["commit"]].files
    assert repository.private
    card = hub.content(files["README.md"]).decode()
    front = front_of(card)
    assert (front["license"], front["language"]) == ("apache-2.0", ["en"])
    assert said["base_model"].split("@")[1] in card
    assert f"natprec solve {NAME} --eps" in card
    assert {"LICENSE", "plan.json", "verification.json", "natprec/measurement.safetensors"} <= files.keys()
    result = natprec("solve", NAME, "--eps", "2", "--json")
    assert json.loads(result.out)["eps"] == 2
    checked = natprec("check", NAME, "--gpu", "h100", "--json")
    assert checked.code == 0, checked.err


def test_the_card_is_rendered_again_from_what_was_pulled(hub: Hub, checkpoint: Path) -> None:
    from huggingface_hub import snapshot_download

    pushed(checkpoint)
    folder = Path(snapshot_download(NAME))
    out = checkpoint.parent / "again.md"
    assert natprec("card", folder, "--out", out).code == 0
    assert out.read_bytes() == (folder / "README.md").read_bytes()


def test_no_measurement(hub: Hub, checkpoint: Path) -> None:
    said = pushed(checkpoint, "--no-measurement")
    files = hub.repositories[NAME].commits[said["commit"]].files
    assert "natprec/measurement.safetensors" not in files
    assert "natprec solve" not in hub.content(files["README.md"]).decode()
    result = natprec("solve", NAME, "--eps", "2")
    refused(result, "has no natprec/measurement.safetensors")


def test_dry_runs_send_nothing(hub: Hub, checkpoint: Path) -> None:
    said = pushed(checkpoint, "--dry-run")
    assert said["dry_run"]
    assert said["commit"] is None
    assert "model.safetensors" in said["files"]["main"]
    assert NAME not in hub.repositories
    assert all(method in ("GET", "HEAD") for method, _ in hub.requests)


def test_branches_and_pull_requests(hub: Hub, checkpoint: Path) -> None:
    said = pushed(checkpoint, "--revision", "smaller")
    repository = hub.repositories[NAME]
    assert said["commit"] == repository.branches["smaller"] != repository.branches["main"]
    said = pushed(checkpoint, "--create-pr")
    assert said["commits"][0]["pull_request"].endswith("/discussions/1")
    assert not repository.commits[repository.branches["main"]].files


def test_a_later_push_removes_what_is_no_longer_there(hub: Hub, checkpoint: Path) -> None:
    first = pushed(checkpoint)
    second = pushed(checkpoint, "--no-measurement")
    files = hub.repositories[NAME].commits[second["commit"]].files
    assert set(first["files"]["main"]) - files.keys() == {"natprec/measurement.safetensors"}


def _token(token: str | None) -> Callable[[pytest.MonkeyPatch, Hub, Path], None]:
    def prepare(patch: pytest.MonkeyPatch, hub: Hub, folder: Path) -> None:
        patch.delenv("HF_TOKEN") if token is None else patch.setenv("HF_TOKEN", token)

    return prepare


def _failed(patch: pytest.MonkeyPatch, hub: Hub, folder: Path) -> None:
    changed(folder, kl_mean=0.7, kl_ci95=(0.6, 0.8), verdict="fail", passed=False)


def _other_weights(patch: pytest.MonkeyPatch, hub: Hub, folder: Path) -> None:
    content = bytearray((folder / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (folder / "model.safetensors").write_bytes(bytes(content))


def _unverified(patch: pytest.MonkeyPatch, hub: Hub, folder: Path) -> None:
    (folder / "verification.json").unlink()


def _others(patch: pytest.MonkeyPatch, hub: Hub, folder: Path) -> None:
    other = folder.parent / "other"
    other.mkdir()
    (other / "notes.txt").write_text("mine")
    hub.add(NAME, other)


def _offline(patch: pytest.MonkeyPatch, hub: Hub, folder: Path) -> None:
    patch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


def _gone(patch: pytest.MonkeyPatch, hub: Hub, folder: Path) -> None:
    patch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")


def _moved(patch: pytest.MonkeyPatch, hub: Hub, folder: Path) -> None:
    def before(method: str, path: str) -> None:
        if path.endswith("/preupload/main"):  # after the head was read, before the commit
            hub.repositories[NAME].commit("main", "another", {}, [])

    hub.before = before


def _base_gone(patch: pytest.MonkeyPatch, hub: Hub, folder: Path) -> None:
    del hub.repositories["alice/tiny"]


def _nothing(patch: pytest.MonkeyPatch, hub: Hub, folder: Path) -> None:
    """The options are enough."""


@pytest.mark.parametrize(
    ("prepare", "name", "options", "words"),
    [
        (_token(None), NAME, (), ("there is none", "hf auth login")),
        (_token("hf_unknown"), NAME, (), ("does not accept your token",)),
        (_token("hf_reader"), NAME, (), ("your token only reads", "/settings/tokens")),
        (_token("hf_bob"), NAME, (), ("'alice' is not yours", "'bob'")),
        (_failed, NAME, (), ("fails its promise", "0.7 > 0.5")),
        (_other_weights, NAME, (), ("'model.safetensors' is not the file that was judged",)),
        (_unverified, NAME, (), ("no verification lies beside", "--allow-unverified")),
        (_others, NAME, (), ("'notes.txt'", "choose another name")),
        (_moved, NAME, (), ("meanwhile", "push again")),
        (_offline, NAME, (), ("HF_HUB_OFFLINE",)),
        (_gone, NAME, (), ("cannot be reached", "check the connection")),
        (_base_gone, NAME, (), ("'alice/tiny'",)),
        (_nothing, "alice/" + "x" * 100, (), ("106 characters", "96")),
        (_nothing, "tiny", (), ("NAMESPACE/NAME",)),
        (_nothing, NAME, ("--revision", "a..b"), ("'a..b' is no name",)),
        (_nothing, NAME, ("--base-model", "alice/other"), ("'alice/other'", "was measured on alice/tiny")),
        (_nothing, NAME, ("--base-model", "alice/tiny@no-such"), ("no revision 'no-such'", "main")),
    ],
)
def test_refusals(
    hub: Hub, checkpoint: Path, monkeypatch: pytest.MonkeyPatch, name: str, options: tuple[str, ...],
    prepare: Callable[[pytest.MonkeyPatch, Hub, Path], None], words: tuple[str, ...],
) -> None:  # fmt: skip
    """One line each, and no commit of ours."""
    prepare(monkeypatch, hub, checkpoint)
    refused(natprec("push", checkpoint, name, *options), *words)
    assert "plan.json" not in {
        path for each in hub.repositories.values() for commit in each.commits.values() for path in commit.files
    }


def test_a_full_disk_on_reading_back(hub: Hub, checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: Any, **options: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("huggingface_hub.snapshot_download", full)
        refused(natprec("push", checkpoint, NAME), "as commit", "free space", "nothing is sent twice")
    assert pushed(checkpoint)["new"] is False


def test_a_folder_that_is_not_removed_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    tries: list[str] = []
    removes = shutil.rmtree

    def flaky(folder: str, ignore_errors: bool) -> None:
        tries.append(folder)
        if len(tries) > 1:
            removes(folder, ignore_errors)

    monkeypatch.setattr(shutil, "rmtree", flaky)
    with push._scratch("natprec-read-back-") as folder:
        assert Path(folder).is_dir()
    assert tries
    assert not Path(folder).exists()


def test_what_comes_back_is_compared(hub: Hub, checkpoint: Path) -> None:
    honest = hub.content

    def dishonest(entry: dict[str, Any]) -> bytes:
        content = honest(entry)
        return content.replace(b'"eps"', b'"esp"')

    hub.content = dishonest  # type: ignore[method-assign]
    result = natprec("push", checkpoint, NAME)
    refused(result)
    assert "is not what was sent" in result.err or "was not read back" in result.err


@pytest.mark.parametrize(("prepare", "title"), [(_unverified, "(not verified)"), (_failed, "(FAILS its promise)"),
                                                (_nothing, "")])  # fmt: skip
def test_allow_unverified_says_so_in_the_title(
    hub: Hub, checkpoint: Path, monkeypatch: pytest.MonkeyPatch, title: str,
    prepare: Callable[[pytest.MonkeyPatch, Hub, Path], None],
) -> None:  # fmt: skip
    prepare(monkeypatch, hub, checkpoint)
    said = pushed(checkpoint, "--allow-unverified")
    card = hub.content(hub.repositories[NAME].commits[said["commit"]].files["README.md"]).decode()
    assert f"# tiny-natprec {title}".strip() in card.splitlines()
    assert bool(said["unverified"]) == bool(title)


def test_damaged_weights_are_never_pushed(hub: Hub, checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _other_weights(monkeypatch, hub, checkpoint)
    refused(natprec("push", checkpoint, NAME, "--allow-unverified"), "CRC-32")


def test_files_of_others_in_the_folder_stay(hub: Hub, checkpoint: Path) -> None:
    (checkpoint / "diary.txt").write_text("mine")
    said = pushed(checkpoint)
    assert "diary.txt" not in said["files"]["main"]
    shutil.rmtree(checkpoint / "natprec")
    refused(natprec("push", checkpoint, NAME), "not written by natprec")


def test_private_things_in_text() -> None:
    from natprec.errors import InputError

    refuse_private({"plan.json": b"{}", "tokenizer.json": b"hf_" + b"a" * 34})
    with pytest.raises(InputError, match=r"plan\.json"):
        refuse_private({"plan.json": b"token hf_" + b"a" * 34})


def test_a_ladder_goes_up_as_branches(
    hub: Hub, tmp_path: Path, text_file: Path
) -> None:  # fmt: skip
    out = tmp_path / "ladder"
    result = natprec(
        "quantize", "--model", "alice/tiny", "--ladder", "5,7", "--data", text_file, *SMALL, "--eval-tokens", 512,
        "--rounding", "rtn", "--out", out,
    )  # fmt: skip
    assert result.code == 0, result.err
    said = pushed(out)
    repository = hub.repositories[NAME]
    assert repository.branches.keys() == {"main", "5bpw", "7bpw"}
    main = repository.commits[repository.branches["main"]].files
    assert main.keys() == {"README.md", "ladder.json", "ladder.svg", "natprec/measurement.safetensors",
                           "natprec/published.json"}  # fmt: skip
    card = hub.content(main["README.md"]).decode()
    rungs = json.loads((out / "ladder.json").read_text())["rungs"]
    for rung in rungs:
        assert f"`{rung['name']}`" in card
        assert f"{rung['kl_mean']:.4g}" in card
    drawn = ElementTree.fromstring(hub.content(main["ladder.svg"]))
    named = [each.text for each in drawn.iter("{http://www.w3.org/2000/svg}text")]
    assert {"5bpw", "7bpw"} <= set(named)
    assert len(list(drawn.iter("{http://www.w3.org/2000/svg}circle"))) == len(rungs)
    own = repository.commits[repository.branches["5bpw"]].files
    assert {"model.safetensors", "README.md"} <= own.keys()
    assert not own.keys() & {"ladder.json", "ladder.svg"}
    assert f"{NAME}@5bpw" in hub.content(own["README.md"]).decode()
    assert [each["branch"] for each in said["commits"]] == ["5bpw", "7bpw", "main"]
    commits = len(repository.commits)
    assert pushed(out)["new"] is False
    assert len(repository.commits) == commits
    for content in map(hub.content, main.values()):
        assert str(tmp_path).encode() not in content
    refused(natprec("push", out, NAME, "--tag", "x"), "leave out --revision")


def test_within_noise_is_pushed_with_these_words(hub: Hub, checkpoint: Path) -> None:
    changed(checkpoint, kl_mean=0.4, kl_ci95=(0.3, 0.6), verdict="pass-within-noise", passed=True, texts=[])
    said = pushed(checkpoint)
    card = hub.content(hub.repositories[NAME].commits[said["commit"]].files["README.md"]).decode()
    assert "**PASS WITHIN NOISE**" in card
    assert not said["unverified"]


def test_a_disk_that_fails_while_files_are_sent(
    hub: Hub, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:  # huggingface_hub says only that uploading failed
    def failing(**_: Any) -> None:
        raise OSError(errno.EIO, "Input/output error", "model.safetensors")

    monkeypatch.setattr("huggingface_hub._commit_api.lfs_upload", failing)
    refused(natprec("push", checkpoint, NAME), "cannot push", "Input/output error", "the disk or the connection")
    repository = hub.repositories[NAME]
    assert set(repository.commits[repository.branches["main"]].files) <= {".gitattributes"}
