"""Pictures of every mode and size become RGB of one size; those that cannot be read are named."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from natprec.data.folders import MOST, divided
from natprec.data.pictures import LONGEST_SIDE, common_size, find_pictures, of_size, read_picture
from natprec.errors import InputError


def drawn(mode: str = "RGB", size: tuple[int, int] = (8, 6), color: object = None) -> Image.Image:
    return Image.new(mode, size, color)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("mode", "name", "color", "expected"),
    [
        ("RGB", "a.png", (250, 3, 4), (250, 3, 4)),
        ("CMYK", "a.tiff", (0, 0, 0, 0), (255, 255, 255)),
        ("CMYK", "b.tiff", (0, 255, 255, 0), (255, 0, 0)),
        ("L", "a.png", 7, (7, 7, 7)),
        ("1", "a.png", 1, (255, 255, 255)),
        ("I;16", "a.png", 65535, (255, 255, 255)),
        ("F", "a.tiff", 128.0, (128, 128, 128)),
        ("P", "a.png", 0, (0, 0, 0)),
        ("RGBA", "a.png", (200, 10, 10, 0), (255, 255, 255)),  # all of it is transparent
        ("LA", "a.png", (40, 255), (40, 40, 40)),
        ("RGB", "a.gif", (255, 0, 0), (255, 0, 0)),
        ("RGB", "a.webp", (0, 0, 0), (0, 0, 0)),
    ],
)
def test_every_mode_becomes_rgb(tmp_path: Path, mode: str, name: str, color: object, expected: tuple[int, ...]) -> None:
    drawn(mode, color=color).save(tmp_path / name)
    found = read_picture(tmp_path / name)
    assert (found.mode, found.size) == ("RGB", (8, 6))
    assert np.abs(np.asarray(found).astype(int) - expected).max() <= 2


def test_a_photograph_is_turned_as_the_camera_says(tmp_path: Path) -> None:
    picture = drawn(size=(8, 4))
    exif = picture.getexif()
    exif[0x0112] = 6
    picture.save(tmp_path / "a.jpg", exif=exif)
    assert read_picture(tmp_path / "a.jpg").size == (4, 8)


def test_one_pixel_and_a_panorama_get_the_size_of_all(tmp_path: Path) -> None:
    sizes = [(1, 1), (40, 30), (44, 30), (3000, 20), (40, 32)]
    for number, size in enumerate(sizes):
        drawn(size=size, color=(number, 0, 0)).save(tmp_path / f"{number}.png")
    files = find_pictures(tmp_path)
    assert common_size(files) == (40, 30)
    assert {of_size(file, (40, 30)).size for file in files} == {(40, 30)}


def test_large_pictures_are_made_smaller_in_proportion(tmp_path: Path) -> None:
    for number in range(2):
        drawn(size=(1344, 896), color=(number, 0, 0)).save(tmp_path / f"{number}.png")
    assert common_size(find_pictures(tmp_path)) == (LONGEST_SIDE, round(LONGEST_SIDE * 896 / 1344))


def test_a_folder_is_searched_and_each_content_taken_once(tmp_path: Path) -> None:
    (tmp_path / "within").mkdir()
    drawn(color=1).save(tmp_path / "b.png")
    drawn(color=1).save(tmp_path / "copy.png")
    drawn(color=2).save(tmp_path / "within" / "a.JPEG")
    (tmp_path / "notes.txt").write_text("no picture")
    assert [file.name for file in find_pictures(tmp_path)] == ["b.png", "a.JPEG"]


def test_of_many_pictures_some_are_taken_spread_over_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("natprec.data.folders.MOST", 4)
    for number in range(12):
        drawn(color=number).save(tmp_path / f"{number:02}.png")
    assert [file.name for file in find_pictures(tmp_path)] == ["00.png", "03.png", "06.png", "09.png"]
    assert MOST > 4


def test_what_judges_is_not_measured_on() -> None:
    for count in range(2, 40):
        files = [Path(str(number)) for number in range(count)]
        measured, judging = divided(files)
        assert measured
        assert judging
        assert sorted([*measured, *judging]) == sorted(files)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("b.png", b"", "'.*b.png' cannot be read"),
        ("b.jpg", b"\xff\xd8 no more", "'.*b.jpg' cannot be read"),
        ("b.gif", b"GIF89a", "'.*b.gif' cannot be read"),
    ],
)
def test_a_broken_picture_is_named(tmp_path: Path, name: str, content: bytes, words: str) -> None:
    drawn().save(tmp_path / "a.png")
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=words):
        common_size(find_pictures(tmp_path))


def test_one_cut_off_is_named(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes((tmp_path / "a.png").read_bytes()[:900])
    with pytest.raises(InputError, match=r"b\.png' cannot be read .*; repair it or take it out"):
        common_size(find_pictures(tmp_path))


def test_a_folder_without_pictures_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        find_pictures(tmp_path / "nowhere")
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError, match="is no folder"):
        find_pictures(tmp_path / "file")
    with pytest.raises(InputError, match="holds no picture"):
        find_pictures(tmp_path)
    drawn().save(tmp_path / "a.png")
    drawn().save(tmp_path / "same.png")
    with pytest.raises(InputError, match="holds one picture"):
        find_pictures(tmp_path)
