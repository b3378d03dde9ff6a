"""Pictures of attention: every block's map over one picture, or the mean map over time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeattn._cv2 import cv2
from edgeattn.errors import DataError
from edgeattn.imaging import Picture, crop_box
from edgeattn.maps import coloured, mean_map, normalise, overlay
from edgeattn.spec import Spec
from edgeattn.tasks.drawing import SILVER, WHITE, shorten, write

TILE = 224
"""Side of a tile, in pixels."""
GAP = 12
CAPTION = 40
"""Height of the two lines under a tile."""
CAPITAL = 9
BAR = 22
BACKGROUND = 32


@dataclass(frozen=True)
class Moment:
    """One frame of a strip."""

    picture: Picture
    """The frame, (H, W, 3) BGR bytes."""
    maps: Mapping[str, NDArray[Any]]
    """Raw maps by output name, each (1, h, w) or (h, w)."""
    caption: str
    """When, and what was answered."""


def sheet(
    picture: Picture, maps: Mapping[str, NDArray[Any]], spec: Spec, *, title: str = "", opacity: float = 0.5
) -> Picture:
    """The picture, the mean map, and the map of every block over it, with a colour scale: (H, W, 3) BGR bytes.

    Under each block stand its path, its mechanism, the size of its map and how focused it is: the share of the attention
    that lies in the strongest fifth of the places (0.20: none at all).

    Args:
        picture: the picture, (H, W, 3) BGR bytes.
        maps: raw maps by output name, each (1, h, w) or (h, w).
        spec: the model's contract, which names the blocks.
        title: a line above.
        opacity: of the maps' colours, 0 to 1.

    Raises:
        DataError: there are no maps.
    """
    given = [
        (told, maps[told.output].reshape(maps[told.output].shape[-2:])) for told in spec.maps if told.output in maps
    ]
    if not given:
        raise DataError("the model gives no attention maps to show; train one with --attention")
    tiles = [_tile(_seen(picture, spec), "picture", "what the model sees")]
    tiles.append(_tile(_over(picture, mean_map(maps), spec, opacity), "mean", "over all blocks"))
    for told, map_hw in given:
        rows, columns = np.shape(map_hw)
        size = f"{told.mechanism} {rows} x {columns}, focus {focus(map_hw):.2f}"
        tiles.append(_tile(_over(picture, map_hw, spec, opacity), told.block, size))
    columns = max(1, round((len(tiles) * 1.3) ** 0.5))
    return _framed(_grid(tiles, columns), title)


def strip(moments: Sequence[Moment], spec: Spec, *, title: str = "", opacity: float = 0.5) -> Picture:
    """Frames of a video over their mean maps, from left to right in time: (H, W, 3) BGR bytes.

    Raises:
        DataError: no moments, or no maps.
    """
    if not moments:
        raise DataError("there is no frame to show the attention of; name a video with frames")
    above = [_tile(_seen(moment.picture, spec), moment.caption, "") for moment in moments]
    below = [_tile(_over(m.picture, mean_map(m.maps), spec, opacity), "mean over all blocks", "") for m in moments]
    return _framed(_grid([*above, *below], len(moments)), title)


def focus(map_hw: NDArray[Any]) -> float:
    """Share of a map's attention (h, w) in its strongest fifth of places; 0.2 where it is spread evenly."""
    density = np.sort(normalise(map_hw).ravel())[::-1]
    whole, part = divmod(0.2 * density.size, 1)
    return float(density[: int(whole)].sum() + (part * density[int(whole)] if part else 0.0))


def _seen(picture: Picture, spec: Spec) -> Picture:
    if spec.input.fit == "letterbox":
        return picture
    x, y, w, h = crop_box(picture.shape[0], picture.shape[1], spec.input)
    return picture[y : y + h, x : x + w]


def _over(picture: Picture, map_hw: NDArray[Any], spec: Spec, opacity: float) -> Picture:
    return _seen(overlay(picture, map_hw, spec.input, opacity), spec)


def _tile(picture: Picture, name: str, detail: str) -> Picture:
    height, width = picture.shape[:2]
    scale = TILE / max(height, width)
    fitted = cv2.resize(
        picture, (max(1, round(width * scale)), max(1, round(height * scale))), interpolation=cv2.INTER_AREA
    )
    tile = np.full((TILE + CAPTION, TILE, 3), BACKGROUND, np.uint8)
    tile[: fitted.shape[0], : fitted.shape[1]] = fitted
    for line, (text, colour) in enumerate(((name, WHITE), (detail, SILVER))):
        write(tile, shorten(text, CAPITAL, TILE), (0, TILE + 15 + 17 * line), CAPITAL, colour)
    return tile


def _grid(tiles: Sequence[Picture], columns: int) -> Picture:
    height, width = tiles[0].shape[:2]
    rows = -(-len(tiles) // columns)
    grid = np.full((rows * (height + GAP) - GAP, columns * (width + GAP) - GAP, 3), BACKGROUND, np.uint8)
    for place, tile in enumerate(tiles):
        y, x = place // columns * (height + GAP), place % columns * (width + GAP)
        grid[y : y + height, x : x + width] = tile
    return grid


def _framed(grid: Picture, title: str) -> Picture:
    """The grid with a title above, a colour scale below, and a margin."""
    width = grid.shape[1]
    head, foot = np.full((34, width, 3), BACKGROUND, np.uint8), np.full((BAR + 24, width, 3), BACKGROUND, np.uint8)
    write(head, shorten(title, 12, width), (0, 20), 12)
    scale = min(width, 2 * TILE)
    foot[6 : 6 + BAR // 2, :scale] = coloured(np.linspace(0, 1, scale)[None, :])
    write(foot, "least attention of the map", (0, BAR + 14), CAPITAL, SILVER)
    write(foot, "greatest", (scale - 60, BAR + 14), CAPITAL, SILVER)
    whole = np.vstack([head, grid, foot])
    framed = cv2.copyMakeBorder(whole, GAP, GAP, GAP, GAP, cv2.BORDER_CONSTANT, value=(BACKGROUND,) * 3)
    return np.asarray(framed, np.uint8)


def _single(raw: NDArray[Any]) -> NDArray[Any]:
    """A raw map of one picture, (1, h, w) or (h, w), as (h, w)."""
    return np.asarray(raw).reshape(np.shape(raw)[-2:])
