"""A clock turned by hand and sources that follow a script, for the camera's tests."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from edgeattn._cv2 import cv2
from edgeattn.camera import Frame
from edgeattn.timing import NS_PER_MS

BLACK = np.zeros((48, 64, 3), np.uint8)


class Clock:
    """Stands still until told otherwise."""

    def __init__(self) -> None:
        self.ns = 0

    def __call__(self) -> int:
        return self.ns

    def advance_ms(self, ms: float) -> None:
        self.ns += round(ms * NS_PER_MS)

    def sleep(self, seconds: float) -> None:
        self.advance_ms(1000 * seconds)


class File:
    """Not live: frames whose capture takes `read_ms` each."""

    live = False
    fps = 30.0
    name = "scripted file"

    def __init__(self, frames: int, clock: Clock, read_ms: float = 0.0, labels: Sequence[str | None] = ()) -> None:
        self.frames, self.clock, self.read_ms, self.labels = frames, clock, read_ms, labels
        self.is_open = False

    def __enter__(self) -> File:
        self.is_open = True
        return self

    def __exit__(self, *_: object) -> None:
        self.is_open = False

    def __iter__(self) -> Iterator[Frame]:
        for index in range(self.frames):
            self.clock.advance_ms(self.read_ms)
            truth = {"index": index, "label": self.labels[index]} if self.labels else None
            yield Frame(BLACK, index, self.clock(), "received", truth)


class Live:
    """Live: puts the first batch of frames at once and each further one when `next_batch` is called.

    A batch is the capture times of its frames, in milliseconds. `next_batch` returns when the batch is in the slot.
    """

    live = True
    fps = 30.0
    name = "scripted camera"

    def __init__(self, batches: Sequence[Sequence[float]], error: Exception | None = None) -> None:
        self.batches, self.error = batches, error
        self.released = threading.Event()
        self._wanted = [threading.Event() for _ in batches]
        self._done = [threading.Event() for _ in batches]
        self._next = 1
        self._wanted[0].set()

    def __enter__(self) -> Live:
        return self

    def __exit__(self, *_: object) -> None:
        self.released.set()

    def __iter__(self) -> Iterator[Frame]:
        index = 0
        for captured_ms, wanted, done in zip(self.batches, self._wanted, self._done, strict=True):
            if not wanted.wait(20):
                raise TimeoutError("nobody asked for the next batch")
            for ms in captured_ms:
                yield Frame(BLACK, index, round(ms * NS_PER_MS), "received")
                index += 1
            done.set()
        if self.error:
            raise self.error

    def next_batch(self) -> None:
        if self._next < len(self.batches):
            self._wanted[self._next].set()
            assert self._done[self._next].wait(20)
            self._next += 1


def write_video(path: Path, pictures: Sequence[np.ndarray], fps: float = 30.0) -> Path:
    height, width = pictures[0].shape[:2]
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"mp4v"), fps, (width, height))
    assert writer.isOpened()
    for picture in pictures:
        writer.write(picture)
    writer.release()
    return path


def read_video(path: Path) -> list[np.ndarray]:
    capture = cv2.VideoCapture(str(path))
    pictures = []
    while (read := capture.read())[0]:
        pictures.append(read[1])
    capture.release()
    return pictures
