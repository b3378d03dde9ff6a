"""Attention maps: from raw to comparable, how far two of them differ, and how they are shown.

Legend of shapes: B batch or pictures, h w height and width of a map, H W of a picture. A raw map is what the graph
gives, non-negative and of any scale; a normalised one sums to 1, so that it reads as where the attention goes.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeattn._cv2 import cv2
from edgeattn.errors import DataError
from edgeattn.imaging import Picture, seen_box
from edgeattn.spec import InputSpec

Maps = NDArray[np.float64]

COLOURS = ("turbo", "viridis", "inferno", "grey")
"""Colour maps that attention is shown in."""
OUTSIDE = 0.6
"""Brightness left to the part of a frame that the model does not see."""
FLAT = 1e-3
"""Relative spread below which a map is shown as having no focus at all."""


def normalise(raw_Bhw: NDArray[Any]) -> Maps:
    """Scale raw maps (..., h, w) to sum to 1 each; negative and non-finite values count as 0, all-zero is uniform."""
    clean = np.where(np.isfinite(raw_Bhw) & (raw_Bhw > 0), raw_Bhw, 0.0).astype(np.float64)
    totals = clean.sum(axis=(-2, -1), keepdims=True)
    uniform = 1.0 / (clean.shape[-2] * clean.shape[-1])
    return np.where(totals > 0, clean / np.where(totals > 0, totals, 1.0), uniform)


def mean_map(maps: Mapping[str, NDArray[Any]]) -> Maps:
    """The mean (h, w) over blocks of one picture's maps, each (1, h, w) or (h, w), at the size of the largest.

    Raises:
        DataError: there are no maps.
    """
    if not maps:
        raise DataError("there are no attention maps to show; open the engine with maps=True, or the model has none")
    singles = [normalise(raw.reshape(raw.shape[-2:])) for raw in maps.values()]
    height, width = max(m.shape[0] for m in singles), max(m.shape[1] for m in singles)
    resized = [cv2.resize(m, (width, height), interpolation=cv2.INTER_LINEAR) for m in singles]
    return normalise(np.mean(resized, axis=0))


def overlay(
    picture: Picture, map_hw: NDArray[Any], spec: InputSpec, opacity: float = 0.5, colours: str = COLOURS[0]
) -> Picture:
    """Draw a map over what the model sees of a frame, and darken the rest.

    Args:
        picture: the frame, (H, W, 3) bytes in BGR; it is not changed.
        map_hw: one map (h, w), raw or normalised; its least value is shown in the first colour (turbo: blue), its greatest in
            the last (red).
        spec: the model's input, which says which crop the map covers.
        opacity: of the colours, 0 to 1.
        colours: one of `COLOURS`.

    Raises:
        DataError: the map is not of shape (h, w).
    """
    if map_hw.ndim != 2:
        raise DataError(f"a map to be shown must be (h, w), not {map_hw.shape}; take one picture's, or mean_map")
    x, y, w, h = map(round, seen_box(picture.shape[0], picture.shape[1], spec))
    density = normalise(map_hw)
    low, high = density.min(), density.max()
    shown = (density - low) / (high - low) if high - low > FLAT * high else np.zeros_like(density)
    coarse = (max(1, w // 4), max(1, h // 4))  # looks the same, and colouring is the slowest part
    grey = cv2.resize(shown.astype(np.float32), coarse, interpolation=cv2.INTER_LINEAR)
    shades = cv2.resize(coloured(grey, colours), (w, h), interpolation=cv2.INTER_LINEAR)
    if x < 0 or y < 0:  # a letterbox's bars show nothing of the frame
        shades = shades[-y : picture.shape[0] - y, -x : picture.shape[1] - x]
        x, y, h, w = 0, 0, *picture.shape[:2]
    drawn = picture.copy()
    for part in (drawn[:y], drawn[y + h :], drawn[y : y + h, :x], drawn[y : y + h, x + w :]):
        if part.size:
            part[:] = cv2.convertScaleAbs(part, alpha=OUTSIDE)
    inside = drawn[y : y + h, x : x + w]
    inside[:] = cv2.addWeighted(inside, 1.0 - opacity, shades, opacity, 0.0)
    return drawn


def coloured(levels_hw: NDArray[Any], colours: str = COLOURS[0]) -> Picture:
    """Levels (h, w) of 0 to 1 as colours, with turbo blue to red: (h, w, 3) BGR bytes."""
    return np.asarray(_palette(colours)[np.rint(255 * levels_hw).astype(np.uint8)], np.uint8)


@functools.cache
def _palette(colours: str) -> Picture:
    """The colour of each grey, (256, 3) BGR bytes."""
    greys = np.arange(256, dtype=np.uint8).reshape(1, 256)
    if colours == "grey":
        return greys.reshape(256, 1).repeat(3, axis=1)
    return np.asarray(cv2.applyColorMap(greys, getattr(cv2, f"COLORMAP_{colours.upper()}")), np.uint8).reshape(256, 3)


def js_divergence(p_Bhw: NDArray[Any], q_Bhw: NDArray[Any]) -> Maps:
    """Jensen-Shannon divergence in bits of maps (..., h, w), one figure a map: 0 (equal) to 1 (apart).

    The figure has no absolute meaning: the gates of two unrelated pictures, all near one half, score 0.02. Compare it
    with what maps of different pictures score.
    """
    p, q = normalise(p_Bhw), normalise(q_Bhw)
    mean = (p + q) / 2
    return np.maximum(0.0, (_bits(p, mean) + _bits(q, mean)) / 2)


def _bits(p: Maps, q: Maps) -> Maps:
    ratio = np.divide(p, q, out=np.ones_like(p), where=p > 0)
    return np.asarray((p * np.log2(ratio)).sum(axis=(-2, -1)), np.float64)


def rank_correlation(a_Bhw: NDArray[Any], b_Bhw: NDArray[Any]) -> Maps:
    """Spearman's rank correlation of maps (..., h, w), one figure a map; equal values share their mean rank.

    Between two constant maps it is 1, between a constant one and another 0.
    """
    shape = a_Bhw.shape[:-2]
    rows_a, rows_b = (m.reshape(-1, m.shape[-2] * m.shape[-1]) for m in (a_Bhw, b_Bhw))
    return np.asarray([_spearman(a, b) for a, b in zip(rows_a, rows_b, strict=True)], np.float64).reshape(shape)


def mass_overlap(a_Bhw: NDArray[Any], b_Bhw: NDArray[Any], top: float = 0.2) -> Maps:
    """How much of what `a` marks most `b` marks most too, maps (..., h, w), one figure a map: 1 when they mark the same.

    The mass of `a` on the `top` share of places where `b` is greatest, over its mass on its own; equal values at the edge
    share the places that are left, so that a constant `b` finds what chance finds.
    """
    shape = a_Bhw.shape[:-2]
    rows_a, rows_b = (normalise(m).reshape(-1, m.shape[-2] * m.shape[-1]) for m in (a_Bhw, b_Bhw))
    found = [(a * _top(b, top)).sum() / (a * _top(a, top)).sum() for a, b in zip(rows_a, rows_b, strict=True)]
    return np.asarray(found, np.float64).reshape(shape)


def _top(row: Maps, share: float) -> Maps:
    """Weight of each place in the greatest `share` of them: 1 inside, 0 outside, a fraction for equals at the edge."""
    count = max(1.0, share * len(row))
    edge = np.sort(row)[-math.ceil(count)]
    above, level = row > edge, row == edge
    return np.asarray(above + level * (count - above.sum()) / level.sum(), np.float64)


def _spearman(a: NDArray[Any], b: NDArray[Any]) -> float:
    ranks_a, ranks_b = _ranks(a), _ranks(b)
    spread = np.sqrt(np.mean(ranks_a**2) * np.mean(ranks_b**2))
    if spread == 0:
        return float(not ranks_a.any() and not ranks_b.any())
    return float(np.mean(ranks_a * ranks_b) / spread)


def _ranks(values: NDArray[Any]) -> Maps:
    """Ranks of a row, centred on 0, ties sharing their mean."""
    _, group, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return np.asarray((last - (counts - 1) / 2)[group] - (len(values) + 1) / 2, np.float64)
