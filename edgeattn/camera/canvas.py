"""What is seen: the frame with its attention, its answer, and a line of figures."""

from __future__ import annotations

import math
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np

from edgeattn import maps
from edgeattn.camera.pipeline import Result
from edgeattn.camera.record import Record
from edgeattn.errors import NameNotFoundError, SpecError
from edgeattn.imaging import Picture
from edgeattn.spec import Spec
from edgeattn.tasks import draw, drawing
from edgeattn.timing import Spans

Draws = Literal["nothing", "attention", "all"]
"""How much is drawn for a sink: no picture, the frame under its attention, or with the answer and the figures as well."""


@dataclass(frozen=True)
class View:
    """How the attention is shown."""

    attention: bool = True
    """It is drawn over the picture, where the model gives maps."""
    block: str | None = None
    """The block whose map is drawn; None: the mean over all."""
    opacity: float = 0.5
    """Of its colours, and of a segmenter's regions, 0 to 1."""
    colours: str = maps.COLOURS[0]
    """One of `maps.COLOURS`."""

    def __post_init__(self) -> None:
        if not 0.0 <= self.opacity <= 1.0:
            raise SpecError(f"the opacity must be from 0 to 1, not {self.opacity}")
        if self.colours not in maps.COLOURS:
            raise NameNotFoundError("colour map", self.colours, maps.COLOURS)


class Painting(Protocol):
    """A result and what is drawn of it: each picture once, by the first thread that asks for it."""

    @property
    def result(self) -> Result:
        """What is new in it."""

    def picture(self, draws: Draws) -> Picture:
        """The picture with that much drawn on it: (H, W, 3) BGR, shared and not to be changed."""


class Tile:
    """The painting of one source's result."""

    def __init__(self, result: Result, view: View, lines: tuple[str, ...], painter: Painter) -> None:
        self.result = result
        self._view, self._lines, self._painter = view, lines, painter
        self._drawn: dict[Draws, Picture] = {}

    def picture(self, draws: Draws) -> Picture:
        """See `Painting`."""
        with self._painter.lock:
            if "attention" not in self._drawn:
                spec = self.result.model.bundle.spec
                with self._painter.spans("attention"):
                    self._drawn["attention"] = under_attention(self.result, spec, self._view)
            if draws not in self._drawn:
                with self._painter.spans("draw"):
                    self._drawn[draws] = annotated(
                        self._drawn["attention"], self.result, self._lines, self._view.opacity
                    )
            return self._drawn[draws]


class Mosaic:
    """The newest picture of each of several sources, side by side; one that has none yet is black, with words."""

    def __init__(self, result: Result, tiles: Sequence[Tile | tuple[str, ...]], painter: Painter) -> None:
        self.result = result
        self._tiles, self._painter = tiles, painter
        self._drawn: dict[Draws, Picture] = {}

    def picture(self, draws: Draws) -> Picture:
        """See `Painting`; all tiles are drawn alike."""
        pictures = [tile.picture(draws) if isinstance(tile, Tile) else None for tile in self._tiles]
        with self._painter.lock:
            if draws not in self._drawn:
                with self._painter.spans("mosaic"):
                    self._drawn[draws] = self._composed(pictures)
            return self._drawn[draws]

    def _composed(self, pictures: list[Picture | None]) -> Picture:
        height, width = next((p.shape[:2] for p in pictures if p is not None), self.result.frame.picture.shape[:2])
        columns = math.ceil(math.sqrt(len(pictures)))
        whole = np.zeros((math.ceil(len(pictures) / columns) * height, columns * width, 3), np.uint8)
        for place, (picture, tile) in enumerate(zip(pictures, self._tiles, strict=True)):
            top, left = place // columns * height, place % columns * width
            part = whole[top : top + height, left : left + width]
            if picture is not None:
                part[:] = drawing.fitted(picture, (width, height))
            elif isinstance(tile, tuple):
                caption(part, tile)
        return whole


class Painter:
    """What the paintings of a run share: a lock, so that one is drawn at a time, and the times of drawing."""

    def __init__(self, spans: Spans) -> None:
        self.lock, self.spans = threading.Lock(), spans

    def __call__(self, result: Result, view: View, lines: tuple[str, ...]) -> Tile:
        """A painting; nothing is drawn yet."""
        return Tile(result, view, lines, self)


def under_attention(result: Result, spec: Spec, view: View) -> Picture:
    """The frame under its attention; where there is none, or it is off, the frame itself."""
    if not (view.attention and result.maps):
        return result.frame.picture
    one = result.maps.get(view.block) if view.block else None
    shown = maps.mean_map(result.maps if one is None else {"": one})
    return maps.overlay(result.frame.picture, shown, spec.input, view.opacity, view.colours)


def annotated(picture: Picture, result: Result, lines: tuple[str, ...] = (), opacity: float = 0.5) -> Picture:
    """A copy of the picture with the answer, regions in colours of that opacity; `lines` stand at its upper left."""
    picture = draw(picture, result.smoothed, opacity)
    caption(picture, lines)
    return picture


def caption(picture: Picture, lines: Sequence[str]) -> None:
    """Write lines at the upper left of the picture itself."""
    capital = 0.8 * drawing.capital_px(picture)
    step, edge = round(2.2 * capital), round(0.6 * capital)
    for row, line in enumerate(lines):
        shown = drawing.shorten(line, capital, picture.shape[1] - 2 * edge)
        drawing.shade(picture, (0, row * step, drawing.text_width(shown, capital) + 2 * edge, step))
        drawing.write(picture, shown, (edge, row * step + round(1.6 * capital)), capital)


def figures(result: Result, record: Record) -> str:
    """Age, rate and drops in one line."""
    rate = f"{record.fps_now:.1f} fps" if record.fps_now is not None else "- fps"
    return f"age {result.age_ms:.0f} ms   {rate}   {result.dropped} dropped"
