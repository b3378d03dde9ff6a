"""Views with boxes: what is drawn in a picture lies in the view where its box says."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from edgeattn._cv2 import cv2
from edgeattn.datasets.annotated import Annotated
from edgeattn.imaging import resize_crop
from edgeattn.spec import InputSpec
from edgeattn.train.augment import NO_AUGMENT, Augment
from edgeattn.train.boxes import Boxes, BoxViews, moved, where_boxes

SPEC = InputSpec(96, 128, fit="letterbox")
PLAIN = Augment(brightness=0.0, colour=0.0, blur=0.0, noise=0.0, erase=0.0, mosaic=0.0)
"""Moves, and changes nothing else."""
COLOURS = ((0, 0, 255), (0, 255, 0), (255, 0, 0))


def annotated(
    path: Path, boxes: list[list[int]], *, disc: bool = False, shape: tuple[int, int] = (240, 200)
) -> Annotated:
    """A grey picture with a filled box, or an ellipse in it, for each; the label is the colour."""
    picture = np.full((*shape, 3), 114, np.uint8)
    for i, (left, top, right, low) in enumerate(boxes):
        if disc:
            cv2.ellipse(picture, (((left + right) / 2, (top + low) / 2), (right - left, low - top), 0), COLOURS[i], -1)
        else:
            picture[top:low, left:right] = COLOURS[i]
    path.write_bytes(cv2.imencode(".png", picture)[1].tobytes())
    count = len(boxes)
    held = np.array(boxes, np.float32).reshape(-1, 4)
    return Annotated(path, shape, held, np.arange(count), np.zeros(count, bool))


def drawn(view: np.ndarray, colour: tuple[int, int, int]) -> np.ndarray:
    """Where a colour lies in a view, (left, top, right, bottom) to a part of a pixel."""
    grey = np.array([114, 114, 114])
    towards = np.array(colour) - grey
    share = np.clip(((view.astype(float) - grey) @ towards) / (towards @ towards), 0, 1)
    share[np.abs(view.astype(float) - grey - share[..., None] * towards).max(2) > 12] = 0.0
    columns, rows = share.max(0), share.max(1)
    ends = []
    for line in (columns, rows):
        inside = np.flatnonzero(line > 0.5)
        ends.append((inside[0], inside[-1] + 1))
    return np.array([ends[0][0], ends[1][0], ends[0][1], ends[1][1]], float)


@pytest.mark.parametrize("seed", range(6))
def test_boxes_lie_where_the_drawn_boxes_do(tmp_path: Path, seed: int) -> None:
    one = annotated(tmp_path / "a.png", [[20, 30, 90, 110], [100, 120, 180, 200]])
    views = BoxViews([one], SPEC, replace(PLAIN, rotate=0.0))
    view = views.view(0, np.random.default_rng(seed))
    assert len(view.truth.boxes)
    for box, label in zip(view.truth.boxes, view.truth.labels, strict=True):
        assert drawn(view.picture, COLOURS[label]) == pytest.approx(box, abs=1.0)


@pytest.mark.parametrize("seed", range(6))
def test_turned_boxes_are_those_of_the_turned_ellipses(tmp_path: Path, seed: int) -> None:
    one = annotated(tmp_path / "a.png", [[60, 80, 120, 180]], disc=True)
    views = BoxViews([one], SPEC, replace(PLAIN, rotate=60.0, scale=(0.9, 1.1), shift=0.0))
    view = views.view(0, np.random.default_rng(seed))
    assert drawn(view.picture, COLOURS[0]) == pytest.approx(view.truth.boxes[0], abs=1.5)


def test_four_pictures_share_a_view_each_with_its_boxes(tmp_path: Path) -> None:
    some = [annotated(tmp_path / f"{i}.png", [[30, 30, 170, 200]]) for i in range(3)]
    some = [replace(one, labels=np.array([i])) for i, one in enumerate(some)]
    views = BoxViews(some, SPEC, replace(PLAIN, mosaic=1.0, rotate=0.0, scale=(1.4, 1.5), shift=0.0))
    view = views.view(1, np.random.default_rng(3))
    assert view.truth.labels[0] == 1  # the picture asked for is the first
    assert len(view.truth.boxes) == 4
    for left, top, right, low in np.rint(view.truth.boxes).astype(int):
        inner, outer = view.picture[top + 2 : low - 2, left + 2 : right - 2], view.picture[top - 3, left:right]
        assert (inner == COLOURS[0]).all()
        assert not (outer == COLOURS[0]).all(1).any()


def test_without_augmentation_a_view_is_what_the_box_sees(tmp_path: Path) -> None:
    one = annotated(tmp_path / "a.png", [[20, 30, 90, 110]])
    views = BoxViews([one], SPEC, NO_AUGMENT)
    view = views.view(0, np.random.default_rng(0))
    picture = cv2.imdecode(np.frombuffer(one.path.read_bytes(), np.uint8), cv2.IMREAD_COLOR)
    assert views.is_fixed
    assert drawn(resize_crop(np.asarray(picture, np.uint8), SPEC), COLOURS[0]) == pytest.approx(
        view.truth.boxes[0], abs=1.0
    )
    assert view.truth.boxes[0] == pytest.approx(np.array([32, 12, 60, 44]), abs=0.1)  # 96 / 240, bars of 24


def test_boxes_are_cut_at_the_edge_and_left_out_where_little_is_seen() -> None:
    shifted = np.array([[1.0, 0.0, 50.0], [0.0, 1.0, 0.0]])  # the view begins at column 50
    boxes = np.array([[10, 10, 90, 60], [10, 10, 55, 60], [0, 0, 40, 40], [60, 10, 61, 60]], np.float32)
    found = moved(Boxes(boxes, np.arange(4)), shifted, SPEC)
    assert found.labels.tolist() == [0]
    assert found.boxes.tolist() == [[0, 10, 40, 60]]


def test_crowds_are_not_learnt(tmp_path: Path) -> None:
    one = annotated(tmp_path / "a.png", [[20, 30, 90, 110], [100, 120, 180, 200]])
    one = replace(one, crowd=np.array([True, False]))
    assert BoxViews([one], SPEC, NO_AUGMENT).view(0, np.random.default_rng(0)).truth.labels.tolist() == [1]


def test_boxes_tell_where_to_look(tmp_path: Path) -> None:
    where = where_boxes(np.array([[10, 20, 50, 40], [90, 70, 127.5, 96]], np.float32), SPEC)
    assert where.shape == (96, 128)
    assert where[30, 30] == pytest.approx(1.0, abs=0.02)
    assert where[30, 49] == pytest.approx(np.exp(-2), abs=0.03)
    assert where[:20].max() == where[41:69].max() == 0
    assert where[83, 109] > 0.95
    one = annotated(tmp_path / "a.png", [[20, 30, 90, 110]])
    view = BoxViews([one], SPEC, replace(PLAIN, rotate=0.0), where=True).view(0, np.random.default_rng(1))
    assert view.where is not None
    y, x = np.unravel_index(view.where.argmax(), view.where.shape)
    left, top, right, low = view.truth.boxes[0]
    assert (x, y) == pytest.approx(((left + right) / 2, (top + low) / 2), abs=1.5)
    assert BoxViews([one], SPEC, PLAIN).view(0, np.random.default_rng(1)).where is None
