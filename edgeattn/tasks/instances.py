"""The mask of each box: prototypes that a detector gives for the whole frame, mixed for each box (YOLACT, arXiv:1904.02689).

Legend of shapes: N boxes, P prototypes, h w their size, H W the frame. A mask is kept where its box is, not for all of the frame.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeattn._cv2 import cv2
from edgeattn.imaging import Picture, seen_box
from edgeattn.spec import InputSpec

OPACITY = 0.45
"""Of a mask over its thing."""
SMOOTH_PX = 1.0
"""How far an outline may be from the mask's edge."""


@dataclass(frozen=True)
class Patch:
    """A mask over a part of the frame."""

    x: int
    """Left edge, in pixels of the frame."""
    y: int
    """Upper edge."""
    shown: NDArray[np.bool_]
    """(height, width): where the thing is seen."""

    def outlines(self) -> list[list[list[float]]]:
        """The edges of its pieces as polygons of points (x, y) in pixels of the frame, the largest first."""
        found, _ = cv2.findContours(self.shown.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
        plain = [cv2.approxPolyDP(piece, SMOOTH_PX, closed=True)[:, 0] for piece in found]
        pieces = sorted((piece for piece in plain if len(piece) > 2), key=lambda piece: -cv2.contourArea(piece))
        return [(piece + np.array([self.x, self.y])).tolist() for piece in pieces]


@dataclass(frozen=True)
class Instances:
    """The masks of the boxes of one frame, in their order."""

    size: tuple[int, int]
    """Height and width of the frame."""
    patches: tuple[Patch, ...]
    """One a box."""

    def __iter__(self) -> Iterator[Patch]:
        return iter(self.patches)

    def chosen(self, places: NDArray[np.integer[Any]]) -> Instances:
        """Those at these places."""
        return Instances(self.size, tuple(self.patches[i] for i in places))

    def each(self) -> Iterator[NDArray[np.bool_]]:
        """One after the other over the whole frame, (H, W)."""
        for patch in self.patches:
            mask, (height, width) = np.zeros(self.size, bool), patch.shown.shape
            mask[patch.y : patch.y + height, patch.x : patch.x + width] = patch.shown
            yield mask

    def whole(self) -> NDArray[np.bool_]:
        """(N, H, W): all of them over the whole frame, which takes a byte a pixel each."""
        return np.stack([*self.each()]) if self.patches else np.zeros((0, *self.size), bool)


def mixed(
    boxes_N4: NDArray[np.float32],
    weights_NP: NDArray[Any],
    prototypes_Phw: NDArray[Any],
    spec: InputSpec,
    size: tuple[int, int],
) -> Instances:
    """The masks of boxes.

    Args:
        boxes_N4: left, upper, right, lower edge in pixels of the frame, within it.
        weights_NP: of the prototypes in each one's mask.
        prototypes_Phw: over the whole input; a thing is where their sum is above 0.
        spec: the input.
        size: height and width of the frame.
    """
    count, high, wide = prototypes_Phw.shape
    logits_Nhw = (weights_NP.astype(np.float32) @ prototypes_Phw.reshape(count, -1).astype(np.float32)).reshape(
        -1, high, wide
    )
    x, y, across, down = seen_box(*size, spec)
    step_x, step_y = wide / across, high / down  # places of the prototypes to a pixel of the frame
    patches = []
    for box, logits in zip(boxes_N4.astype(float), logits_Nhw, strict=True):
        x0, y0, x1, y1 = (math.floor(edge + 0.5) for edge in box)  # the pixels whose middle lies in the box
        x0, y0 = min(x0, size[1] - 1), min(y0, size[0] - 1)
        shape = (max(1, x1 - x0), max(1, y1 - y0))
        backwards = np.array(
            [[step_x, 0.0, (x0 + 0.5 - x) * step_x - 0.5], [0.0, step_y, (y0 + 0.5 - y) * step_y - 0.5]]
        )
        flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
        seen = cv2.warpAffine(logits, backwards, shape, flags=flags, borderMode=cv2.BORDER_REPLICATE)
        patches.append(Patch(x0, y0, np.asarray(seen) > 0.0))
    return Instances(size, tuple(patches))


def shade(canvas: Picture, patch: Patch, colour: tuple[int, int, int]) -> None:
    """Lay a mask over a picture, in place."""
    height, width = patch.shown.shape
    part = canvas[patch.y : patch.y + height, patch.x : patch.x + width]
    shown = patch.shown[: part.shape[0], : part.shape[1]]
    tinted = cv2.addWeighted(part, 1 - OPACITY, np.full_like(part, colour), OPACITY, 0)
    part[shown] = tinted[shown]
