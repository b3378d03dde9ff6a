"""Views of pictures with boxes: warped with their boxes, alone or four together.

Legend of shapes: N boxes, H W the view.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from edgeattn.datasets.annotated import Annotated
from edgeattn.evaluation.detect import Truth
from edgeattn.imaging import Picture, read_picture
from edgeattn.spec import InputSpec
from edgeattn.train.augment import NO_AUGMENT, Augment, shrink
from edgeattn.train.loader import Kept, View, Where

SEEN = 0.25
"""Least part of a box, by area, that lies in the view: of less nobody could tell what it is."""
SMALLEST = 2.0
"""Least side of a box in the view, in pixels."""
CROSSING = (0.3, 0.7)
"""Where four pictures meet, as a fraction of the sides."""
CLOSER = 0.7
"""Part of a picture that is seen among four, to that which is seen of one alone: each has a quarter of the room."""
LEAST_SIDE = 8
"""Of an input, in pixels."""


class Boxes(NamedTuple):
    """The truth of a view."""

    boxes: NDArray[np.float32]
    """(N, 4): left, top, right and bottom in pixels of the view."""
    labels: NDArray[np.int64]
    """(N,): places in the labels."""


class BoxViews:
    """Views of annotated pictures: kept small in memory once read, augmented anew each time."""

    def __init__(
        self, pictures: Sequence[Annotated], spec: InputSpec, augment: Augment, *, where: bool = False
    ) -> None:
        """List them; with `where` the boxes tell where to look."""
        self.pictures, self.spec, self.augment, self.where = pictures, spec, augment, where
        self._kept = Kept(self._read)

    def __len__(self) -> int:
        return len(self.pictures)

    @property
    def is_fixed(self) -> bool:
        """As `FolderViews.is_fixed`."""
        return self.augment == NO_AUGMENT

    def view(self, index: int, rng: np.random.Generator) -> View:
        """As `Views.view`; the truth is `Boxes`."""
        picture, truth = self._mosaic(index, rng) if rng.random() < self.augment.mosaic else self._one(index, rng)
        return View(picture, truth, where_boxes(truth.boxes, self.spec) if self.where else None)

    def _one(self, index: int, rng: np.random.Generator) -> tuple[Picture, Boxes]:
        return self._placed(index, self.spec, self.augment, rng)

    def _mosaic(self, index: int, rng: np.random.Generator) -> tuple[Picture, Boxes]:
        """Four pictures around a point (YOLOv4, Bochkovskiy et al. 2020, arXiv:2004.10934), each augmented for itself."""
        width, height = self.spec.width, self.spec.height
        x, y = (int(np.clip(side * rng.uniform(*CROSSING), LEAST_SIDE, side - LEAST_SIDE)) for side in (width, height))
        closer = replace(self.augment, scale=(CLOSER * self.augment.scale[0], CLOSER * self.augment.scale[1]))
        canvas = np.empty((height, width, 3), np.uint8)
        found = []
        for i, (left, top, right, low) in enumerate(
            ((0, 0, x, y), (x, 0, width, y), (0, y, x, height), (x, y, width, height))
        ):
            chosen = int(rng.integers(len(self.pictures))) if i else index
            tile = InputSpec(low - top, right - left, fit=self.spec.fit)
            picture, truth = self._placed(chosen, tile, closer, rng)
            canvas[top:low, left:right] = picture
            found.append(Boxes(truth.boxes + np.array([left, top] * 2, np.float32), truth.labels))
        return canvas, Boxes(
            np.concatenate([one.boxes for one in found]), np.concatenate([one.labels for one in found])
        )

    def _placed(self, index: int, spec: InputSpec, augment: Augment, rng: np.random.Generator) -> tuple[Picture, Boxes]:
        (picture,), held = self._kept[index], self.pictures[index]
        view, matrix = augment.placed(picture, spec, rng)
        truth = true_boxes(held)
        scale = np.array([picture.shape[1] / held.shape[1], picture.shape[0] / held.shape[0]] * 2, np.float32)
        return view, moved(Boxes(truth.boxes * scale, truth.labels), matrix, spec)

    def _read(self, index: int) -> tuple[Picture]:
        return (shrink(read_picture(self.pictures[index].path), self.spec),)


def true_boxes(held: Truth) -> Boxes:
    """The boxes of a picture that are to be learnt; those of crowds are not."""
    return Boxes(held.boxes[~held.crowd], held.labels[~held.crowd])


def moved(truth: Boxes, matrix: NDArray[np.float64], spec: InputSpec) -> Boxes:
    """Boxes of a picture where they come to lie in a view of it, cut at its edge; what is nearly gone is left out.

    What stands in a turned box is taken for an ellipse that fills it: the corners of most things are empty, and a box around
    the turned corners is too large (Kalra et al. 2021, arXiv:2104.14529).

    Args:
        truth: in pixels of the picture.
        matrix: (2, 3), from the middles of the view's pixels to those of the picture's.
        spec: of the view.
    """
    back = np.linalg.inv(matrix[:, :2])
    boxes = truth.boxes.astype(np.float64)
    middles = (boxes[:, :2] + boxes[:, 2:]) / 2
    middles = (middles - 0.5 - matrix[:, 2]) @ back.T + 0.5
    half = np.sqrt(((boxes[:, 2:] - boxes[:, :2]) / 2) ** 2 @ (back.T**2))
    whole = np.concatenate([middles - half, middles + half], axis=1)
    cut = np.clip(whole, 0.0, [spec.width, spec.height] * 2)
    sides = cut[:, 2:] - cut[:, :2]
    kept = (sides >= SMALLEST).all(1) & (sides.prod(1) >= SEEN * (2 * half).prod(1))
    return Boxes(cut[kept].astype(np.float32), truth.labels[kept])


def where_boxes(boxes_N4: NDArray[np.float32], spec: InputSpec) -> Where:
    """Where to look on a view, (H, W): a bump over each box, 1 in its middle and 0.14 in the middles of its edges."""
    where = np.zeros((spec.height, spec.width), np.float32)
    for left, top, right, low in boxes_N4:
        x0, y0 = int(left), int(top)
        x = (np.arange(x0, min(spec.width, int(np.ceil(right)))) + 0.5 - (left + right) / 2) / ((right - left) / 2)
        y = (np.arange(y0, min(spec.height, int(np.ceil(low)))) + 0.5 - (top + low) / 2) / ((low - top) / 2)
        bump = np.exp(-2 * y**2)[:, None] * np.exp(-2 * x**2)
        part = where[y0 : y0 + len(y), x0 : x0 + len(x)]
        np.maximum(part, bump, out=part)
    return where
