"""Where an object is seen, as COCO writes it: polygons, or run lengths, counted down the columns.

Legend of shapes: H W the picture, P points of a polygon.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Mask = NDArray[np.bool_]
Outline = Sequence[Sequence[float]] | Mapping[str, Any]
"""Polygons [[x, y, x, y, ...], ...] in pixels, or run lengths {"size": [H, W], "counts": a list, or COCO's text}."""


class CleanOutline(NamedTuple):
    """An outline without what encloses nothing."""

    outline: Outline | None
    """It; None where nothing is left."""
    dropped: int
    """Polygons of fewer than three points, which are left out."""


def clean_outline(outline: Outline | None) -> CleanOutline:
    """Leave out the polygons of fewer than three points: annotation tools leave them behind."""
    if not outline or isinstance(outline, Mapping):
        return CleanOutline(outline or None, 0)
    kept = [polygon for polygon in outline if len(polygon) not in (0, 2, 4)]
    return CleanOutline(kept or None, len(outline) - len(kept))


def draw_outline(outline: Outline, shape: tuple[int, int]) -> Mask:
    """The mask (H, W) of an object.

    Raises:
        ValueError: see `check_outline`.
    """
    if isinstance(outline, Mapping):
        lengths = _run_lengths(outline, shape)
        inside = np.arange(len(lengths)) % 2 == 1  # the first run lies outside the object
        return np.repeat(inside, lengths).reshape(shape[::-1]).T
    mask = np.zeros(shape, bool)
    for polygon in outline:
        mask |= _fill(_points(polygon), shape)
    return mask


def check_outline(outline: Outline, shape: tuple[int, int]) -> None:
    """Check that an outline can be drawn, without drawing it.

    Raises:
        ValueError: a polygon of fewer than three points, or run lengths that do not fill the picture.
    """
    if isinstance(outline, Mapping):
        _run_lengths(outline, shape)
        return
    for polygon in outline:
        _points(polygon)


def _points(polygon: Sequence[float]) -> NDArray[np.float64]:
    points = np.asarray(polygon, np.float64).ravel()
    if len(points) < 6 or len(points) % 2 or not np.isfinite(points).all():
        raise ValueError(f"a polygon needs three points at least, x and y of each, not {len(points)} numbers")
    return points.reshape(-1, 2)


def _fill(points_P2: NDArray[np.float64], shape: tuple[int, int]) -> Mask:
    """The pixels whose centres lie inside a polygon, by the even-odd rule.

    OpenCV's `fillPoly` paints the outline, too, and so makes every object half a pixel larger all around.
    """
    height, width = shape
    x0, y0 = points_P2.T
    x1, y1 = np.roll(points_P2, -1, axis=0).T
    centres_H1 = np.arange(height)[:, None] + 0.5
    row, edge = np.nonzero((y0 <= centres_H1) != (y1 <= centres_H1))
    x = x0[edge] + (row + 0.5 - y0[edge]) * (x1[edge] - x0[edge]) / (y1[edge] - y0[edge])
    crossed = np.zeros((height, width + 1), np.int32)  # edges between the pixel before and this one
    np.add.at(crossed, (row, np.clip(np.ceil(x - 0.5), 0, width).astype(int)), 1)
    return np.asarray(np.cumsum(crossed[:, :-1], axis=1) % 2 == 1)


def _run_lengths(outline: Mapping[str, Any], shape: tuple[int, int]) -> list[int]:
    counts = outline["counts"]
    lengths = _lengths(counts) if isinstance(counts, str | bytes) else [int(count) for count in counts]
    height, width = (int(side) for side in outline["size"])
    if (height, width) != shape or min(lengths, default=0) < 0 or sum(lengths) != height * width:
        raise ValueError(
            f"run lengths of {width} x {height} pixels that sum to {sum(lengths)}, in a picture of {shape[1]} x {shape[0]}"
        )
    return lengths


def _lengths(text: str | bytes) -> list[int]:
    """Run lengths from COCO's text: 5 bits a character, the lowest first; from the fourth on the change over two runs."""
    lengths: list[int] = []
    value = shift = 0
    for code in text.encode("ascii") if isinstance(text, str) else text:
        bits = code - 48
        value |= (bits & 0x1F) << shift
        shift += 5
        if bits & 0x20:
            continue
        if bits & 0x10:
            value -= 1 << shift
        lengths.append(value + (lengths[-2] if len(lengths) > 2 else 0))
        value = shift = 0
    return lengths
