"""The clock that a camera reads off another screen: what is drawn is read back, and a blurred one is not guessed."""

from __future__ import annotations

import json
import socket
import urllib.request
from pathlib import Path

import numpy as np
import pytest
from scripted import Clock

from edgeattn._cv2 import cv2
from edgeattn.camera import Frame
from edgeattn.camera.glass import (
    HEIGHT,
    WIDTH,
    WRAPS_MS,
    ClockPage,
    Reading,
    fields,
    marker_squares,
    places,
    read_clock,
)
from edgeattn.cli.doctor import doctor
from edgeattn.errors import EdgeAttnError, SourceError
from edgeattn.imaging import Picture


def drawn(milliseconds: int, unit: int = 30) -> Picture:
    """The clock as the page draws it."""
    picture = np.full((int(HEIGHT * unit), int(WIDTH * unit), 3), 255, np.uint8)
    black = [place for place, white in zip(places(), fields(milliseconds), strict=True) if not white]
    for x, y, width, height in marker_squares() + black:
        picture[round(y * unit) : round((y + height) * unit), round(x * unit) : round((x + width) * unit)] = 0
    return picture


def seen(milliseconds: int, width: int, chance: np.random.Generator) -> Picture:
    """As a camera of 640x480 sees it: askew, soft, grey, noisy, and in JPEG."""
    picture = drawn(milliseconds)
    high, wide = picture.shape[:2]
    corners = np.array([[0, 0], [wide, 0], [wide, high], [0, high]], np.float32)
    moved = corners * (width / wide) + [(640 - width) / 2, 60] + chance.uniform(-0.06, 0.06, (4, 2)) * width
    moved = moved.astype(np.float32)
    view = cv2.warpPerspective(
        picture, cv2.getPerspectiveTransform(corners, moved), (640, 480), flags=cv2.INTER_AREA, borderValue=(60, 70, 60)
    )
    view = cv2.GaussianBlur(view, (0, 0), 0.8) * 0.7 + 30 + chance.normal(0, 6, view.shape)
    jpeg = cv2.imencode(".jpg", np.clip(view, 0, 255).astype(np.uint8), [cv2.IMWRITE_JPEG_QUALITY, 70])[1]
    return cv2.imdecode(jpeg, cv2.IMREAD_COLOR)


@pytest.mark.parametrize("width", [400, 160])
def test_the_clock_is_read_askew_and_small(width: int) -> None:
    chance = np.random.default_rng(width)
    times = [int(time) for time in chance.integers(0, WRAPS_MS, 30)]
    read = [read_clock(seen(time, width, chance)) for time in times]
    assert all(found in (None, time) for found, time in zip(read, times, strict=True))
    assert read.count(None) <= 2


def test_two_times_in_one_exposure_are_not_guessed() -> None:
    chance = np.random.default_rng(0)
    for _ in range(50):
        time, share = int(chance.integers(0, WRAPS_MS)), chance.uniform(0.35, 0.65)
        blend = (drawn(time) * share + drawn(time + 17) * (1 - share)).astype(np.uint8)
        assert read_clock(blend) is None
    assert read_clock(np.zeros((480, 640, 3), np.uint8)) is None


def test_ages_go_on_where_the_clock_wraps() -> None:
    reading = Reading()
    now_ns = (5 * WRAPS_MS + 20) * 1_000_000
    for before_ms in (150, 10, -5):
        reading.add(Frame(drawn(5 * WRAPS_MS + 20 - before_ms), 0, now_ns - 3_000_000, "kernel"), now_ns)
    reading.add(Frame(np.zeros((48, 64, 3), np.uint8), 3, now_ns, "kernel"), now_ns)
    assert reading.whole_ms == [150, 10, -5]
    assert reading.ours_ms == [3, 3, 3]
    assert (reading.seen, reading.age_from) == (4, "kernel")


def test_the_page_gives_the_clock_and_nothing_else() -> None:
    clock = Clock()
    clock.advance_ms(1234.5)
    with ClockPage(0, clock) as page:
        address = f"http://127.0.0.1:{page.port}"
        text = urllib.request.urlopen(f"{address}/").read().decode()
        assert json.dumps(places()) in text
        assert float(urllib.request.urlopen(f"{address}/time?unsure=&refresh=16.7").read()) == 1234.5
        assert page.unsure_ms is None, "no clock was set yet"
        urllib.request.urlopen(f"{address}/time?unsure=0.4&refresh=16.7").read()
        assert (page.unsure_ms, page.refresh_ms) == (0.4, 16.7)
        with pytest.raises(urllib.error.HTTPError, match="404"):
            urllib.request.urlopen(f"{address}/etc/passwd")
    with socket.create_server(("", 0)) as taken, pytest.raises(EdgeAttnError, match="choose another: --port"):
        ClockPage(taken.getsockname()[1]).__enter__()


def test_a_file_sees_no_screen(tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "clock.png"), drawn(0))
    with pytest.raises(SourceError, match="sees no screen"):
        doctor(glass=str(tmp_path))
