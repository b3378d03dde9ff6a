"""Frames to profile with: a source's own, or pictures of the bundle as a webcam would send them."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeattn._cv2 import cv2
from edgeattn.bundle import Bundle
from edgeattn.errors import SourceError
from edgeattn.imaging import Picture
from edgeattn.spec import InputSpec

WIDTH, HEIGHT = 640, 480
"""Size of the built-in frames, in pixels."""


def builtin(bundle: Bundle) -> Generator[Picture, None, None]:
    """Endless frames of 640x480 from the bundle's golden pictures, each decoded from JPEG as it is drawn.

    A webcam at this size sends JPEG, so that decoding stands for `capture`. Bundles without golden pictures get noise.
    """
    coded = [cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, 90])[1] for picture in _pictures(bundle)]
    while True:
        for jpeg in coded:
            yield np.asarray(cv2.imdecode(jpeg, cv2.IMREAD_COLOR), np.uint8)


def of_source(source: str) -> Generator[Picture, None, None]:
    """Endless frames of a source; a file or folder that ends is opened again.

    Raises:
        SourceError: the source cannot be opened, or gives no frame.
    """
    from edgeattn.camera import open_source

    while True:
        got_one = False
        with open_source(source) as opened:
            for frame in opened:
                got_one = True
                yield frame.picture
        if not got_one:
            raise SourceError(f"{source} gives no frame; name a camera, a video or a folder of pictures")


def _pictures(bundle: Bundle) -> list[Picture]:
    inputs = bundle.golden().get("inputs")
    if inputs is None or not len(inputs):
        return [np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)]
    pictures = (_to_picture(row, bundle.spec.input) for row in inputs[:8])
    return [np.asarray(cv2.resize(picture, (WIDTH, HEIGHT)), np.uint8) for picture in pictures]


def _to_picture(row: NDArray[Any], spec: InputSpec) -> Picture:
    """Undo `imaging.to_input` for one row of a batch: (H, W, 3) BGR bytes."""
    if spec.layout == "nchw_f32":
        mean, std = np.asarray(spec.mean, np.float32), np.asarray(spec.std, np.float32)
        row = np.clip(np.rint(row.transpose(1, 2, 0) * std + mean), 0, 255)
    return np.asarray(cv2.cvtColor(np.ascontiguousarray(row, np.uint8), cv2.COLOR_RGB2BGR), np.uint8)
