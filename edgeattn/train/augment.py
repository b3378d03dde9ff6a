"""Augmentation with OpenCV: one warp, one matrix of colours, now and then a blur, noise or a covered part.

A view costs about 0.1 ms at 96 x 96. Everything random comes from the generator that is handed in.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgeattn._cv2 import cv2
from edgeattn.imaging import BARS, Picture, seen_box
from edgeattn.spec import InputSpec

MARGIN = 1.5
"""Kept pictures are this much larger than the input, so that zooming in finds detail."""
DRAWS = 32
"""Random numbers of a view; the most that one takes is 25."""
GRAIN = 1 << 16
"""Places at which a view's noise may begin."""


@dataclass(frozen=True)
class Augment:
    """How far a picture is changed."""

    rotate: float = 15.0
    """Greatest turn either way, in degrees."""
    scale: tuple[float, float] = (0.6, 1.15)
    """Side of the part that is seen, as a fraction of what evaluation sees; drawn evenly in the logarithm."""
    aspect: float = 1.2
    """Greatest stretch of one side against the other."""
    shift: float = 0.12
    """Greatest shift, as a fraction of the side."""
    flip: bool = True
    """Whether half of the pictures are mirrored; wrong for letters and digits."""
    brightness: float = 0.35
    """Greatest change of brightness and of contrast, as a fraction."""
    colour: float = 0.35
    """Greatest change of saturation and of the balance of colours, as a fraction."""
    blur: float = 0.1
    """Share of pictures that are blurred."""
    noise: float = 0.1
    """Share of pictures with sensor noise."""
    erase: float = 0.15
    """Share of pictures of which a part is covered."""
    mosaic: float = 0.5
    """Share of views that show four pictures; where there are boxes alone."""

    def __call__(self, picture: Picture, spec: InputSpec, rng: np.random.Generator) -> Picture:
        """Make a view of the input's own size, (H, W, 3) BGR bytes."""
        return self.pair(picture, None, spec, rng)[0]

    def pair(
        self, picture: Picture, where: NDArray[np.float32] | None, spec: InputSpec, rng: np.random.Generator
    ) -> tuple[Picture, NDArray[np.float32] | None]:
        """Make a view, and where to look on it; `where` (H, W) lies over the picture, and is turned and moved with it."""
        view, matrix = self.placed(picture, spec, rng)
        if where is not None:  # nothing is to be looked at beyond the picture's edge, though the picture goes on there
            size = (spec.width, spec.height)
            where = np.asarray(cv2.warpAffine(where, matrix, size, flags=BACKWARDS), np.float32)
        return view, where

    def placed(
        self, picture: Picture, spec: InputSpec, rng: np.random.Generator
    ) -> tuple[Picture, NDArray[np.float64]]:
        """Make a view, and tell where it comes from: the (2, 3) matrix from the middles of its pixels to those of the picture's.

        Beyond the picture's edge a cropped input sees it go on somehow; a letterboxed one sees bars, as on the box.
        """
        draw = _Draw(rng)
        matrix = self._geometry(picture, spec, draw)
        size = (spec.width, spec.height)
        border = cv2.BORDER_REFLECT_101 if draw.chance(0.7) else cv2.BORDER_REPLICATE
        if spec.fit == "letterbox":
            border = cv2.BORDER_CONSTANT
        # Of four channels OpenCV warps in half the time that it takes for three.
        four = cv2.cvtColor(picture, cv2.COLOR_BGR2BGRA)
        four = cv2.warpAffine(four, matrix, size, flags=BACKWARDS, borderMode=border, borderValue=BARS)
        view = np.asarray(cv2.cvtColor(four, cv2.COLOR_BGRA2BGR), np.uint8)
        return self._finish(view, draw), matrix

    def _finish(self, view: Picture, draw: _Draw) -> Picture:
        view = self._colours(view, draw)
        if draw.chance(self.blur):
            view = np.asarray(cv2.GaussianBlur(view, (0, 0), draw.between(0.4, 1.6)), np.uint8)
        if draw.chance(self.noise):
            grain = _grain(view.size)[draw.below(GRAIN) :][: view.size].reshape(view.shape)
            view = np.asarray(cv2.scaleAdd(grain, draw.between(2.0, 10.0), view.astype(np.float32)))
            view = np.clip(view, 0, 255).astype(np.uint8)
        if draw.chance(self.erase):
            view = _erase(view, draw)
        return view

    def _geometry(self, picture: Picture, spec: InputSpec, draw: _Draw) -> NDArray[np.float64]:
        """The (2, 3) matrix from places in the view to places in the picture."""
        x, y, w, h = seen_box(picture.shape[0], picture.shape[1], spec)
        zoom = math.exp(draw.between(math.log(self.scale[0]), math.log(self.scale[1])))
        stretch = math.exp(draw.between(-0.5, 0.5) * math.log(self.aspect))
        angle = math.radians(draw.between(-self.rotate, self.rotate))
        mirror = -1.0 if self.flip and draw.chance(0.5) else 1.0
        step_x, step_y = w * zoom * stretch / spec.width * mirror, h * zoom / stretch / spec.height
        cos, sin = math.cos(angle), math.sin(angle)
        xx, xy, yx, yy = cos * step_x, -sin * step_y, sin * step_x, cos * step_y
        middle_x, middle_y = (spec.width - 1) / 2, (spec.height - 1) / 2
        offset_x = x + w / 2 - 0.5 + draw.between(-self.shift, self.shift) * w - xx * middle_x - xy * middle_y
        offset_y = y + h / 2 - 0.5 + draw.between(-self.shift, self.shift) * h - yx * middle_x - yy * middle_y
        return np.array([[xx, xy, offset_x], [yx, yy, offset_y]])

    def _colours(self, view: Picture, draw: _Draw) -> Picture:
        """Saturation, contrast, balance and brightness as one matrix (3, 4) on (B, G, R, 1)."""
        keep = 1.0 + draw.between(-2.0, 1.0) * self.colour if draw.chance(self.colour) else 1.0
        contrast = math.exp(draw.between(-1, 1) * self.brightness)
        slopes = [contrast * math.exp(draw.between(-0.3, 0.3) * self.colour) for _ in range(3)]
        lift = 128.0 + draw.between(-1, 1) * self.brightness * 90.0
        mixed = [
            [(1.0 - keep) * share + keep * (row == column) for column, share in enumerate(_GREY)] for row in range(3)
        ]
        matrix = [
            [slope * share for share in shares] + [lift - 128.0 * slope]
            for slope, shares in zip(slopes, mixed, strict=True)
        ]
        return np.asarray(cv2.transform(view, np.array(matrix)), np.uint8)


class _Draw:
    """Random numbers of one view, drawn from its generator all at once: one by one they take a third of the view's time."""

    def __init__(self, rng: np.random.Generator) -> None:
        self._next: Callable[[], float] = iter(rng.random(DRAWS).tolist()).__next__

    def chance(self, share: float) -> bool:
        """True in this share of cases."""
        return self._next() < share

    def between(self, low: float, high: float) -> float:
        """Evenly drawn."""
        return low + (high - low) * self._next()

    def below(self, count: int) -> int:
        """An integer from 0 to `count` - 1."""
        return int(self._next() * count)


NO_AUGMENT = Augment(
    rotate=0.0,
    scale=(1.0, 1.0),
    aspect=1.0,
    shift=0.0,
    flip=False,
    brightness=0.0,
    colour=0.0,
    blur=0.0,
    noise=0.0,
    erase=0.0,
    mosaic=0.0,
)
"""Leaves pictures as evaluation sees them."""
_GREY = (0.114, 0.587, 0.299)
"""Shares of blue, green and red in grey (ITU-R BT.601)."""
BACKWARDS = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
"""How `placed` warps, and what lies over a picture with it."""


@functools.lru_cache(maxsize=4)
def _grain(size: int) -> NDArray[np.float32]:
    """Noise of deviation 1, longer by `GRAIN` than a picture of `size` values: each takes its part of it from another place."""
    return np.random.default_rng(0).standard_normal(size + GRAIN, np.float32)


def _erase(view: Picture, draw: _Draw) -> Picture:
    height, width = view.shape[:2]
    h, w = (max(1, int(side * draw.between(0.1, 0.35))) for side in (height, width))
    y, x = draw.below(height - h + 1), draw.below(width - w + 1)
    view = view.copy()
    view[y : y + h, x : x + w] = [draw.below(256) for _ in range(3)]
    return view


def shrink(picture: Picture, spec: InputSpec) -> Picture:
    """Make a picture at most `MARGIN` times as large as the input needs, by area averaging; smaller ones stay as they are."""
    _, _, w, h = seen_box(picture.shape[0], picture.shape[1], spec)
    factor = max(spec.width / w, spec.height / h) * MARGIN
    if factor >= 1.0:
        return picture
    size = (max(1, round(picture.shape[1] * factor)), max(1, round(picture.shape[0] * factor)))
    return np.asarray(cv2.resize(picture, size, interpolation=cv2.INTER_AREA), np.uint8)
