"""Pictures of attention: where things stand on the sheet, and that the colours follow the map."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from edgeattn.errors import DataError
from edgeattn.maps import coloured
from edgeattn.spec import InputSpec, MapSpec, Spec
from edgeattn.tasks.sheet import GAP, TILE, Moment, focus, sheet, strip

SPEC = Spec(
    "classify",
    InputSpec(64, 64),
    ("a", "b"),
    maps=(MapSpec("m0", "stages.0.0", "se"), MapSpec("m1", "stages.1.0", "se")),
)
TOP = GAP + 34


def bright_at(row: int, column: int, side: int = 8) -> np.ndarray:
    raw = np.full((1, side, side), 0.01, np.float32)
    raw[0, row, column] = 1.0
    return raw


def tile(whole: np.ndarray, row: int, column: int, caption: int = 40) -> np.ndarray:
    y, x = TOP + row * (TILE + caption + GAP), GAP + column * (TILE + GAP)
    return whole[y : y + TILE, x : x + TILE]


def test_the_map_is_drawn_at_its_place() -> None:
    picture = np.full((64, 64, 3), 100, np.uint8)
    drawn = sheet(picture, {"m0": bright_at(1, 6), "m1": bright_at(6, 1)}, SPEC, opacity=1.0)
    red = [tile(drawn, *at)[..., 2].astype(int) - tile(drawn, *at)[..., 0] for at in ((0, 1), (1, 0), (1, 1))]
    cell = TILE // 8

    def at(block: np.ndarray, row: int, column: int) -> float:
        return float(block[row * cell : (row + 1) * cell, column * cell : (column + 1) * cell].mean())

    assert abs(tile(drawn, 0, 0).astype(int) - 100).max() == 0  # the picture itself
    mean, first, second = red[0], red[1], red[2]
    assert at(first, 1, 6) > at(first, 6, 1) + 40
    assert at(second, 6, 1) > at(second, 1, 6) + 40
    assert abs(at(mean, 1, 6) - at(mean, 6, 1)) < 25


def test_a_letterboxed_frame_is_shown_whole() -> None:
    picture = np.full((32, 64, 3), 100, np.uint8)
    picture[:, :8] = 250
    spec = replace(SPEC, task="detect", input=InputSpec(64, 64, fit="letterbox"))
    drawn = sheet(picture, {"m0": bright_at(4, 4), "m1": bright_at(4, 4)}, spec, opacity=0.0)
    shown = tile(drawn, 0, 0)
    assert shown[: TILE // 2, : TILE // 8].min() > 200
    assert abs(shown[: TILE // 2, TILE // 4 :].astype(int) - 100).max() < 10
    assert shown[TILE // 2 :].max() < 60


def test_focus() -> None:
    assert focus(np.ones((10, 10))) == pytest.approx(0.2)
    assert focus(np.ones((3, 3))) == pytest.approx(0.2)
    peak = np.zeros((10, 10))
    peak[3, 3] = 5.0
    assert focus(peak) == pytest.approx(1.0)


def test_a_strip_goes_from_left_to_right() -> None:
    moments = [
        Moment(np.full((48, 64, 3), level, np.uint8), {"m0": bright_at(4, 4)}, f"{level} s") for level in (40, 200)
    ]
    drawn = strip(moments, SPEC, title="a video", opacity=0.0)
    assert np.median(tile(drawn, 0, 0)) == 40
    assert np.median(tile(drawn, 0, 1)) == 200
    assert np.median(tile(drawn, 1, 1)) == 200


def test_the_scale_runs_from_blue_to_red() -> None:
    scale = coloured(np.linspace(0, 1, 256)[None, :])[0].astype(int)
    assert scale[40, 0] > scale[40, 2] + 100
    assert scale[230, 2] > scale[230, 0] + 100


def test_nothing_to_show() -> None:
    picture = np.zeros((64, 64, 3), np.uint8)
    with pytest.raises(DataError, match="no attention maps"):
        sheet(picture, {}, SPEC)
    with pytest.raises(DataError, match="no frame"):
        strip([], SPEC)
