"""A library that is not this user's own, or not as it was compiled, is not loaded."""

from __future__ import annotations

import os
import shutil
import stat
from pathlib import Path

import pytest

from natprec.native.compiled import is_intact, loaded, private_folder

COMPILER = shutil.which(os.environ.get("CC", "cc")) or ""
FLAGS = ("-shared", "-fPIC")

pytestmark = pytest.mark.skipif(not COMPILER, reason="there is no C compiler")


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with one C file, and a cache of its own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = tmp_path / "source"
    folder.mkdir()
    (folder / "answer.c").write_text("int answer(void) { return 42; }\n")
    return folder


def answer(folder: Path) -> int:
    return int(loaded(COMPILER, FLAGS, folder).answer())


def the_only_one(folder: Path) -> Path:
    (file,) = folder.glob("*.so")
    return file


def test_it_is_compiled_once_in_a_private_folder(source: Path, tmp_path: Path) -> None:
    assert answer(source) == 42
    folder = tmp_path / "cache" / "natprec"
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    before = the_only_one(folder).stat()
    assert answer(source) == 42
    assert the_only_one(folder).stat().st_mtime_ns == before.st_mtime_ns
    (source / "answer.c").write_text("int answer(void) { return 43; }\n")
    assert answer(source) == 43


def planted(source: Path, name: str) -> None:
    """Another library under the name of the one that was compiled, as one who can write the cache would put it."""
    evil = source.parent / "evil"
    evil.mkdir()
    (evil / "answer.c").write_text("int answer(void) { return 666; }\n")
    os.environ["XDG_CACHE_HOME"] = str(evil / "cache")
    assert answer(evil) == 666
    os.environ["XDG_CACHE_HOME"] = str(source.parent / "cache")
    shutil.copy(the_only_one(evil / "cache" / "natprec"), source.parent / "cache" / "natprec" / name)


def test_another_content_is_compiled_anew(source: Path, tmp_path: Path) -> None:
    assert private_folder() is not None
    answer(source)
    kept = the_only_one(tmp_path / "cache" / "natprec")
    name = kept.name
    kept.unlink()  # that one is loaded, and would be found by its place
    planted(source, name)
    assert not is_intact(kept)
    assert answer(source) == 42


def test_a_file_that_others_can_write_is_passed_over(source: Path, tmp_path: Path) -> None:
    answer(source)
    kept = the_only_one(tmp_path / "cache" / "natprec")
    assert is_intact(kept)
    for mode in (0o720, 0o702):
        kept.chmod(mode)
        assert not is_intact(kept)
    kept.chmod(0o700)
    link = kept.with_name("link.so")
    kept.rename(link)
    kept.symlink_to(link)
    assert not is_intact(kept)


def test_what_another_user_owns_is_passed_over(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answer(source)
    folder = tmp_path / "cache" / "natprec"
    kept = the_only_one(folder)
    monkeypatch.setattr("os.geteuid", lambda: kept.stat().st_uid + 1)
    assert private_folder() is None
    assert not is_intact(kept)
    before = sorted(folder.iterdir())
    assert answer(source) == 42, "compiled for this process alone"
    assert sorted(folder.iterdir()) == before


def test_a_cache_that_others_may_enter_is_closed(source: Path, tmp_path: Path) -> None:
    (tmp_path / "cache" / "natprec").mkdir(parents=True)
    (tmp_path / "cache" / "natprec").chmod(0o777)
    assert answer(source) == 42
    assert stat.S_IMODE((tmp_path / "cache" / "natprec").stat().st_mode) == 0o700


@pytest.mark.parametrize("place", ["none", "relative", "a file", "a link"])
def test_no_place_for_a_cache(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.setattr("pwd.getpwuid", lambda uid: {}[uid])
    if place == "relative":
        monkeypatch.setenv("XDG_CACHE_HOME", "cache")
    elif place == "none":
        monkeypatch.delenv("XDG_CACHE_HOME")
    elif place == "a file":
        (tmp_path / "cache").write_text("")
    else:
        (tmp_path / "cache").mkdir()
        (tmp_path / "elsewhere").mkdir()
        (tmp_path / "cache" / "natprec").symlink_to(tmp_path / "elsewhere")
    assert private_folder() is None
    assert answer(source) == 42
    assert not list(tmp_path.rglob("*.so"))
