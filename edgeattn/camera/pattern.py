"""A moving test picture: a live source for where there is no camera."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from types import TracebackType

import numpy as np

from edgeattn.camera.frame import Frame
from edgeattn.imaging import Picture
from edgeattn.timing import Clock, monotonic_ns

WIDTH, HEIGHT, FPS = 640, 480, 30.0
_BARS = (
    (192, 192, 192),
    (0, 192, 192),
    (192, 192, 0),
    (0, 192, 0),
    (192, 0, 192),
    (0, 0, 192),
    (192, 0, 0),
    (16, 16, 16),
)
_PLACES = {
    "a": (0, 0, 4, 18), "b": (0, 14, 17, 4), "c": (17, 14, 17, 4), "d": (30, 0, 4, 18),
    "e": (17, 0, 17, 4), "f": (0, 0, 17, 4), "g": (15, 0, 4, 18),
}  # fmt: skip
"""Top, left, height and width of a digit's seven segments, clockwise from the top, the middle one last; in pixels."""
_SEGMENTS = ("abcdef", "bc", "abged", "abgcd", "fgbc", "afgcd", "afgedc", "abc", "abcdefg", "abcdfg")
"""Those of the digits 0 to 9."""


class TestPattern:
    """Colour bars that roll by, under a ball and the seconds since the start: endless, live, 30 frames a second."""

    __test__ = False  # no test of pytest's
    live = True
    name = "test pattern"
    fps: float | None = FPS

    def __init__(self, *, clock: Clock = monotonic_ns, sleep: Callable[[float], None] = time.sleep) -> None:
        self._clock, self._sleep = clock, sleep
        self._bars = np.repeat(np.array(_BARS, np.uint8)[None], WIDTH // len(_BARS), axis=1)

    def __enter__(self) -> TestPattern:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return

    def __iter__(self) -> Iterator[Frame]:
        """Frames as they are due; those that nobody was ready for are left out."""
        start_ns, index = self._clock(), 0
        while True:
            due_ns = start_ns + round(index * 1e9 / FPS)
            if (early_ns := due_ns - self._clock()) > 0:
                self._sleep(early_ns / 1e9)
            yield Frame(self._draw(index), index, due_ns, "due")
            index = max(index + 1, int((self._clock() - start_ns) * FPS / 1e9))

    def _draw(self, index: int) -> Picture:
        picture = np.repeat(np.roll(self._bars, 2 * index, axis=1), HEIGHT, axis=0)
        y, x = np.ogrid[:HEIGHT, :WIDTH]
        across, up = index * 4 % (2 * WIDTH), abs(index * 6 % 640 - 320)
        ball = (x - min(across, 2 * WIDTH - across)) ** 2 + (y - HEIGHT + 40 + up) ** 2 < 40**2
        picture[ball] = (255, 255, 255)
        _count(picture, f"{index / FPS:.1f}")
        return picture


def _count(picture: Picture, seconds: str) -> None:
    """Seven segments a digit, since OpenCV's fonts would be nine megabytes of a camera loop's memory."""
    picture[12:62, 12 : 24 * len(seconds)] = 16
    left = 20
    for character in seconds:
        if character == ".":
            picture[50:54, left : left + 4] = 255
            left += 9
            continue
        for segment in _SEGMENTS[int(character)]:
            y, x, height, width = _PLACES[segment]
            picture[20 + y : 20 + y + height, left + x : left + x + width] = 255
        left += 24
