"""Augmentation with OpenCV: one warp, one look-up table, now and then a blur, noise or a covered part.

A view costs about 0.1 ms at 96 x 96. Everything random comes from the generator that is handed in.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgeattn._cv2 import cv2
from edgeattn.imaging import Picture, crop_box
from edgeattn.spec import InputSpec

MARGIN = 1.5
"""Kept pictures are this much larger than the input, so that zooming in finds detail."""


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

    def __call__(self, picture: Picture, spec: InputSpec, rng: np.random.Generator) -> Picture:
        """Make a view of the input's own size, (H, W, 3) BGR bytes."""
        return self.pair(picture, None, spec, rng)[0]

    def pair(
        self, picture: Picture, where: NDArray[np.float32] | None, spec: InputSpec, rng: np.random.Generator
    ) -> tuple[Picture, NDArray[np.float32] | None]:
        """Make a view, and where to look on it; `where` (H, W) lies over the picture, and is turned and moved with it."""
        matrix = self._geometry(picture, spec, rng)
        size = (spec.width, spec.height)
        border = cv2.BORDER_REFLECT_101 if rng.random() < 0.7 else cv2.BORDER_REPLICATE
        view = np.asarray(cv2.warpAffine(picture, matrix, size, flags=_BACKWARDS, borderMode=border), np.uint8)
        if where is not None:  # nothing is to be looked at beyond the picture's edge, though the picture goes on there
            where = np.asarray(cv2.warpAffine(where, matrix, size, flags=_BACKWARDS), np.float32)
        return self._finish(view, rng), where

    def _finish(self, view: Picture, rng: np.random.Generator) -> Picture:
        view = self._colours(view, rng)
        if rng.random() < self.blur:
            view = np.asarray(cv2.GaussianBlur(view, (0, 0), rng.uniform(0.4, 1.6)), np.uint8)
        if rng.random() < self.noise:
            grain = rng.normal(0.0, rng.uniform(2.0, 10.0), view.shape).astype(np.float32)
            view = np.clip(view + grain, 0, 255).astype(np.uint8)
        if rng.random() < self.erase:
            view = _erase(view, rng)
        return view

    def _geometry(self, picture: Picture, spec: InputSpec, rng: np.random.Generator) -> NDArray[np.float64]:
        """The (2, 3) matrix from places in the view to places in the picture."""
        x, y, w, h = crop_box(picture.shape[0], picture.shape[1], spec)
        zoom = np.exp(rng.uniform(np.log(self.scale[0]), np.log(self.scale[1])))
        stretch = np.exp(rng.uniform(-1, 1) * np.log(self.aspect) / 2)
        angle = np.deg2rad(rng.uniform(-self.rotate, self.rotate))
        mirror = -1.0 if self.flip and rng.random() < 0.5 else 1.0
        step_x, step_y = w * zoom * stretch / spec.width * mirror, h * zoom / stretch / spec.height
        cos, sin = np.cos(angle), np.sin(angle)
        linear = np.array([[cos * step_x, -sin * step_y], [sin * step_x, cos * step_y]])
        centre = np.array([x + w / 2 - 0.5, y + h / 2 - 0.5]) + rng.uniform(-self.shift, self.shift, 2) * (w, h)
        offset = centre - linear @ np.array([(spec.width - 1) / 2, (spec.height - 1) / 2])
        return np.column_stack([linear, offset])

    def _colours(self, view: Picture, rng: np.random.Generator) -> Picture:
        if rng.random() < self.colour:
            grey = cv2.cvtColor(cv2.cvtColor(view, cv2.COLOR_BGR2GRAY), cv2.COLOR_GRAY2BGR)
            keep = 1.0 + rng.uniform(-2.0, 1.0) * self.colour
            view = np.asarray(cv2.addWeighted(view, keep, grey, 1.0 - keep, 0.0), np.uint8)
        contrast = np.exp(rng.uniform(-1, 1) * self.brightness)
        balance = np.exp(rng.uniform(-0.3, 0.3, 3) * self.colour)
        lift = rng.uniform(-1, 1) * self.brightness * 90.0
        ramp = np.arange(256, dtype=np.float32)[:, None]
        table = np.clip((ramp - 128.0) * contrast * balance + 128.0 + lift, 0, 255).astype(np.uint8)
        return np.asarray(cv2.LUT(view, table[:, None, :]), np.uint8)


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
)
"""Leaves pictures as evaluation sees them."""
_BACKWARDS = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP


def _erase(view: Picture, rng: np.random.Generator) -> Picture:
    height, width = view.shape[:2]
    h, w = (max(1, int(side * rng.uniform(0.1, 0.35))) for side in (height, width))
    y, x = int(rng.integers(0, height - h + 1)), int(rng.integers(0, width - w + 1))
    view = view.copy()
    view[y : y + h, x : x + w] = rng.integers(0, 256, 3)
    return view


def shrink(picture: Picture, spec: InputSpec) -> Picture:
    """Make a picture at most `MARGIN` times as large as the input needs, by area averaging; smaller ones stay as they are."""
    _, _, w, h = crop_box(picture.shape[0], picture.shape[1], spec)
    factor = max(spec.width / w, spec.height / h) * MARGIN
    if factor >= 1.0:
        return picture
    size = (max(1, round(picture.shape[1] * factor)), max(1, round(picture.shape[0] * factor)))
    return np.asarray(cv2.resize(picture, size, interpolation=cv2.INTER_AREA), np.uint8)
