"""A push that is killed leaves the old commit or the new one, never half of it."""

from __future__ import annotations

import os
import shutil
import signal
import time
from pathlib import Path

import pytest

from tests.hub import Hub, Repository, served
from tests.publishing.conftest import made_hub, turned_to
from tests.publishing.test_push import NAME
from tests.run_command import natprec

POINTS = 10


def killed_at(hub: Hub, folder: Path, point: int | None) -> int:
    """Push in a process of its own, which dies when its request of this number arrives; the requests it made."""
    begun = len(hub.requests)
    child = os.fork()
    if child == 0:
        try:
            code = natprec("push", folder, NAME).code
        except BaseException:
            code = 1
        os._exit(code)

    def before(method: str, path: str) -> None:
        if point is not None and len(hub.requests) - begun == point:
            os.kill(child, signal.SIGKILL)

    hub.before = before
    _, status = os.waitpid(child, 0)
    hub.before = lambda method, path: None
    if point is None:
        assert status == 0
    time.sleep(0.05)  # the request under way is answered to nobody
    with hub.lock:
        return len(hub.requests) - begun


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("xet", [False, True], ids=["lfs", "xet"])
def test_old_or_new_and_never_half(
    xet: bool, original: Path, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if xet:
        pytest.importorskip("hf_xet")
    with served(made_hub(tmp_path / "hub", original, xet=xet)) as hub:
        turned_to(hub, tmp_path / "cache", monkeypatch)
        never_half(hub, checkpoint)


def never_half(hub: Hub, checkpoint: Path) -> None:
    """Every push in a process of its own: one that uses Xet's threads cannot be forked."""
    old = {"natprec/published.json": hub.entry(b"{}", "x"), "model.safetensors": hub.entry(b"old", "model.safetensors")}

    def fresh() -> Repository:
        made = hub.repositories[NAME] = Repository(False)
        made.commit("main", "old", dict(old), [])
        for name in hub.uploaded - {old["model.safetensors"]["sha256"]}:
            (hub.folder / name).unlink(missing_ok=True)
        hub.uploaded.clear()
        shutil.rmtree(hub.folder / "xet")
        (hub.folder / "xet").mkdir()
        return made

    assert natprec("push", checkpoint, NAME, "--dry-run").code == 0, "and modules are imported here, not in each child"
    repository = fresh()
    requests = killed_at(hub, checkpoint, None)
    new = repository.commits[repository.branches["main"]].files
    assert new["model.safetensors"] != old["model.safetensors"]
    assert ("xet" in new["model.safetensors"]) == hub.xet
    points = sorted({1 + round(number * (requests - 1) / (POINTS - 1)) for number in range(POINTS)})
    assert len(points) == POINTS
    ends = []
    for point in points:
        repository = fresh()
        killed_at(hub, checkpoint, point)
        head = repository.commits[repository.branches["main"]]
        assert head.files in (old, new)
        ends.append(head.files == new)
        killed_at(hub, checkpoint, None)
        assert repository.commits[repository.branches["main"]].files == new, "the next push completes it"
        assert len(repository.commits) == 2
    assert ends == sorted(ends), "old before the commit, new after it"
    assert len(set(ends)) == 2
