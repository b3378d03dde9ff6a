"""Keys, and the pictures that they save."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from edgeattn.camera.controls import Collector, Controls, folder_name, save_picture
from edgeattn.errors import EdgeAttnError
from edgeattn.imaging import read_picture

PICTURE = np.full((24, 32, 3), (10, 120, 200), np.uint8)


def test_keys_turn_things_on_and_off() -> None:
    controls = Controls()
    assert controls.press(ord("a")) == "redraw"
    assert controls.view.attention is False
    controls.press(ord("a"))
    assert controls.view.attention is True
    assert controls.press(ord(" ")) is None
    assert controls.paused is True
    controls.press(ord(" "))
    assert controls.paused is False
    assert controls.press(ord("s")) == "snapshot"
    assert not controls.quit


def test_blocks_come_in_turn_after_the_mean() -> None:
    controls = Controls(blocks=("stages.0", "stages.1"))
    seen = []
    for _ in range(4):
        assert controls.press(ord("b")) == "redraw"
        seen.append(controls.view.block)
    assert seen == ["stages.0", "stages.1", None, "stages.0"]


@pytest.mark.parametrize("key", [ord("q"), 27])
def test_quit(key: int) -> None:
    controls = Controls()
    controls.press(key)
    assert controls.quit


@pytest.mark.parametrize("key", [-1, 255, ord("x"), ord("A"), 13])
def test_other_keys_do_nothing(key: int) -> None:
    controls = Controls()
    assert controls.press(key) is None
    assert (controls.view.attention, controls.paused, controls.quit) == (True, False, False)


def test_digits_name_classes_and_zero_the_tenth() -> None:
    assert [Controls().press(ord(c)) for c in "1234567890"] == list(range(10))


def test_frames_go_into_their_class_folder_and_never_over_another(tmp_path: Path) -> None:
    collector = Collector(tmp_path / "photos", ("cup", "Löffel"))
    paths = {collector.save(PICTURE, 1) for _ in range(5)} | {collector.save(PICTURE, 0)}
    assert len(paths) == 6
    assert len(list((tmp_path / "photos" / "Löffel").glob("*.jpg"))) == 5
    for path in paths:
        np.testing.assert_allclose(read_picture(path).astype(int), PICTURE, atol=3)


def test_a_key_beyond_the_classes_says_so(tmp_path: Path) -> None:
    with pytest.raises(EdgeAttnError, match="key 3 stands for no class: there are 2"):
        Collector(tmp_path, ("a", "b")).save(PICTURE, 2)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("label", "folder"), [("cup", "cup"), ("a/b", "a_b"), ("..", "_"), (".", "_"), ("a..b", "a..b"), ("r\\s", "r_s")]
)
def test_labels_stay_inside_the_folder(label: str, folder: str) -> None:
    assert folder_name(label) == folder


def test_a_picture_that_cannot_be_saved_says_so(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("a file, not a folder")
    with pytest.raises(EdgeAttnError, match="was not saved"):
        save_picture(PICTURE, tmp_path / "taken", ".png")
