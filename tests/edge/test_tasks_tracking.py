"""Boxes that are followed; with the package trackers (`pip install trackers`), else what is said without it."""

from __future__ import annotations

import importlib.util

import numpy as np
import pytest

from edgeattn.errors import ExtraMissingError
from edgeattn.imaging import Picture
from edgeattn.spec import InputSpec, Spec, Thresholds
from edgeattn.tasks.detect import Detections, draw, told
from edgeattn.tasks.tracking import Tracker, unsure

SPEC = Spec("detect", InputSpec(64, 64), ("cat", "dog"), output="boxes", thresholds=Thresholds(confidence=0.5))
followed = pytest.mark.skipif(importlib.util.find_spec("trackers") is None, reason="needs the extra track")


def frame(*boxes: tuple[float, float]) -> Detections:
    """A box of 20 x 20 at x for each (x, score), on a line of its own, the best first."""
    rows = sorted(enumerate(boxes), key=lambda one: -one[1][1])
    corners = [[x, 30 * i, x + 20, 30 * i + 20] for i, (x, _) in rows]
    return Detections(
        np.array(corners, np.float32).reshape(-1, 4),
        np.array([score for _, (_, score) in rows], np.float32),
        np.zeros(len(rows), np.int64),
        SPEC.labels,
    )


def test_without_the_package_the_error_names_the_extra() -> None:
    if importlib.util.find_spec("trackers") is None:
        with pytest.raises(ExtraMissingError, match=r"edgeattn\[track\]"):
            Tracker(SPEC)
    assert unsure(SPEC).thresholds == Thresholds(confidence=0.1)


def test_tracks_are_told_and_drawn() -> None:
    found = frame((10, 0.9), (20, 0.8))
    known = Detections(found.boxes, found.scores, found.indices, found.labels, tracks=np.array([3, -1]))
    assert [row["track"] for row in told(known)] == [3, -1]
    assert "track" not in told(found)[0]
    canvas: Picture = np.zeros((200, 200, 3), np.uint8)
    assert (draw(canvas, known) != draw(canvas, found)).any(), "the number is written"


@followed
def test_things_keep_their_numbers_though_they_move_and_though_frames_come_unevenly() -> None:
    tracker, time_s = Tracker(SPEC), 0.0
    numbers = []
    for step in range(30):
        time_s += 0.1 if step % 7 == 0 else 1 / 30
        given = tracker.update(frame((2 * step, 0.9), (60 - 2 * step, 0.8)), time_s)
        assert given.tracks is not None
        numbers.append({int(top): int(track) for top, track in zip(given.boxes[:, 1], given.tracks, strict=True)})
    assert len(set(numbers[-1].values()) - {-1}) == 2
    assert all(row == numbers[-1] for row in numbers[2:])


@followed
def test_a_thing_that_is_hardly_seen_goes_on_and_one_that_never_was_sure_is_not_told() -> None:
    tracker = Tracker(SPEC)
    for step in range(10):
        given = tracker.update(frame((2 * step, 0.9), (40, 0.2)), step / 30)
        assert len(given.scores) == 1
    number = given.tracks
    for step in range(10, 15):
        given = tracker.update(frame((2 * step, 0.2)), step / 30)
        assert list(given.tracks) == list(number), "unsure, and known from before"
    for step in range(15, 20):
        given = tracker.update(frame(), step / 30)
        assert not len(given.scores)
    given = tracker.update(frame((40, 0.9)), 20 / 30)
    assert list(given.tracks) == list(number), "out of sight for a fifth of a second"
    given = tracker.update(frame((44, 0.9)), 10.0)
    assert list(given.tracks) != list(number), "ten seconds later it is another one"
