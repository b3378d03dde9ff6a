"""What is seen: the frame with its attention, its answer, and a line of figures."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import Literal

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
    """Of its colours, 0 to 1."""
    colours: str = maps.COLOURS[0]
    """One of `maps.COLOURS`."""

    def __post_init__(self) -> None:
        if not 0.0 <= self.opacity <= 1.0:
            raise SpecError(f"the opacity must be from 0 to 1, not {self.opacity}")
        if self.colours not in maps.COLOURS:
            raise NameNotFoundError("colour map", self.colours, maps.COLOURS)


class Painting:
    """A result and what is drawn of it: each picture once, by the first thread that asks for it."""

    def __init__(self, result: Result, view: View, lines: tuple[str, ...], painter: Painter) -> None:
        self.result = result
        """What is drawn."""
        self._view, self._lines, self._painter = view, lines, painter
        self._drawn: dict[Draws, Picture] = {}

    def picture(self, draws: Draws) -> Picture:
        """The picture with that much drawn on it: (H, W, 3) BGR, shared and not to be changed."""
        with self._painter.lock:
            if "attention" not in self._drawn:
                spec = self.result.model.bundle.spec
                with self._painter.spans("attention"):
                    self._drawn["attention"] = under_attention(self.result, spec, self._view)
            if draws not in self._drawn:
                with self._painter.spans("draw"):
                    self._drawn[draws] = annotated(self._drawn["attention"], self.result, self._lines)
            return self._drawn[draws]


class Painter:
    """What the paintings of a run share: a lock, so that one is drawn at a time, and the times of drawing."""

    def __init__(self, spans: Spans) -> None:
        self.lock, self.spans = threading.Lock(), spans

    def __call__(self, result: Result, view: View, lines: tuple[str, ...]) -> Painting:
        """A painting; nothing is drawn yet."""
        return Painting(result, view, lines, self)


def under_attention(result: Result, spec: Spec, view: View) -> Picture:
    """The frame under its attention; where there is none, or it is off, the frame itself."""
    if not (view.attention and result.maps):
        return result.frame.picture
    one = result.maps.get(view.block) if view.block else None
    shown = maps.mean_map(result.maps if one is None else {"": one})
    return maps.overlay(result.frame.picture, shown, spec.input, view.opacity, view.colours)


def annotated(picture: Picture, result: Result, lines: tuple[str, ...] = ()) -> Picture:
    """A copy of the picture with the answer; `lines` stand at its upper left."""
    picture = draw(picture, result.smoothed)
    capital = 0.8 * drawing.capital_px(picture)
    step, edge = round(2.2 * capital), round(0.6 * capital)
    for row, line in enumerate(lines):
        shown = drawing.shorten(line, capital, picture.shape[1] - 2 * edge)
        drawing.shade(picture, (0, row * step, drawing.text_width(shown, capital) + 2 * edge, step))
        drawing.write(picture, shown, (edge, row * step + round(1.6 * capital)), capital)
    return picture


def figures(result: Result, record: Record) -> str:
    """Age, rate and drops in one line."""
    rate = f"{record.fps_now:.1f} fps" if record.fps_now is not None else "- fps"
    return f"age {result.age_ms:.0f} ms   {rate}   {result.dropped} dropped"
