"""Where to look: masks, gaze maps and boxes beside the pictures."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from edgeattn._cv2 import cv2
from edgeattn.datasets.targets import check_targets, open_targets
from edgeattn.errors import DataError


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    for name in ("a/1.jpg", "a/2.jpg", "b/ä.jpg"):
        (tmp_path / "photos" / name).parent.mkdir(parents=True, exist_ok=True)
        save(tmp_path / "photos" / name, np.full((30, 40, 3), 90, np.uint8))
    return tmp_path / "photos"


def save(path: Path, picture: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(cv2.imencode(path.suffix, picture)[1].tobytes())


def test_masks_mirror_the_pictures(photos: Path, tmp_path: Path) -> None:
    mask = np.zeros((15, 20), np.uint8)
    mask[5:10, 0:10] = 200
    save(tmp_path / "masks" / "a" / "1.png", mask)
    save(tmp_path / "masks" / "b" / "ä.png", np.dstack([mask, 0 * mask, 0 * mask]))
    targets = open_targets(tmp_path / "masks", photos)
    for name in ("a/1.jpg", "b/ä.jpg"):
        where = targets.of(photos / name, (30, 40, 3))
        assert (where.shape, where.dtype, where.max()) == ((30, 40), np.float32, 1.0)
        assert where[15, 5] == 1.0
        assert where[25, 30] == 0.0
    assert not targets.of(photos / "a/2.jpg", (30, 40, 3)).any()
    assert check_targets(targets, sorted(photos.rglob("*.jpg"))) == 1


def test_an_empty_mask_is_counted(photos: Path, tmp_path: Path) -> None:
    for name in ("a/1.png", "a/2.png", "b/ä.png"):
        save(tmp_path / "masks" / name, np.full((30, 40), 255 * (name == "a/1.png"), np.uint8))
    assert check_targets(open_targets(tmp_path / "masks", photos), sorted(photos.rglob("*.jpg"))) == 2


@pytest.mark.parametrize("data", [b"", b"no picture"])
def test_a_mask_that_is_none_is_named(data: bytes, photos: Path, tmp_path: Path) -> None:
    (tmp_path / "masks" / "a").mkdir(parents=True)
    (tmp_path / "masks" / "a" / "1.png").write_bytes(data)
    with pytest.raises(DataError, match=r"1.png cannot be read as a picture; write the map again, or remove it"):
        check_targets(open_targets(tmp_path / "masks", photos), [photos / "a/1.jpg"])


def test_a_mask_of_another_size_is_named(photos: Path, tmp_path: Path) -> None:
    save(tmp_path / "masks" / "a" / "1.png", np.full((30, 30), 255, np.uint8))
    with pytest.raises(DataError, match=r"1.png is 30 x 30, its picture .*1.jpg 40 x 30; a map must cover"):
        check_targets(open_targets(tmp_path / "masks", photos), [photos / "a/1.jpg"])


@pytest.mark.parametrize("coco", [False, True])
def test_boxes(photos: Path, tmp_path: Path, coco: bool) -> None:
    held: object = {"a/1.jpg": [[10, 5, 20, 10], [-5, -5, 6, 6]]}
    if coco:
        held = {
            "images": [{"id": 7, "file_name": "1.jpg"}],
            "annotations": [{"image_id": 7, "bbox": b} for b in ([10, 5, 20, 10], [-5, -5, 6, 6])],
        }
    (tmp_path / "boxes.json").write_text(json.dumps(held))
    where = open_targets(tmp_path / "boxes.json", photos).of(photos / "a/1.jpg", (30, 40, 3))
    expected = np.zeros((30, 40), np.float32)
    expected[5:15, 10:30] = 1
    expected[0:1, 0:1] = 1
    np.testing.assert_array_equal(where, expected)
    assert not open_targets(tmp_path / "boxes.json", photos).of(photos / "a/2.jpg", (30, 40, 3)).any()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[", "holds no boxes"),
        ('{"a/1.jpg": [[1, 2, 3]]}', "has 4 numbers, not 3"),
        ("[1]", "holds no boxes"),
        ('{"a/1.jpg": [[1, 2, NaN, 4]]}', r"box \[1.0, 2.0, nan, 4.0\] is not finite"),
        ('{"a/1.jpg": [[1, 2, Infinity, 4]]}', r"box \[1.0, 2.0, inf, 4.0\] is not finite"),
    ],
)
def test_a_file_that_is_none(photos: Path, tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "boxes.json").write_text(text)
    with pytest.raises(DataError, match=said):
        open_targets(tmp_path / "boxes.json", photos)


def test_what_is_not_there(photos: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"tells not where to look; give a folder of maps that mirrors"):
        open_targets(tmp_path / "nowhere", photos)
    (tmp_path / "masks").mkdir()
    with pytest.raises(DataError, match=r"tells of none of the 3 pictures.*the first was sought as .*masks/a/1.png"):
        check_targets(open_targets(tmp_path / "masks", photos), sorted(photos.rglob("*.jpg")))
    (tmp_path / "boxes.json").write_text('{"a/1.jpg": [[0, 0, -3, 2]]}')
    with pytest.raises(DataError, match=r"box \[0.0, 0.0, -3.0, 2.0\] of a/1.jpg is none"):
        open_targets(tmp_path / "boxes.json", photos).of(photos / "a/1.jpg", (30, 40, 3))
