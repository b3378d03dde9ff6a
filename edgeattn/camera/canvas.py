"""What is seen: the frame with its attention, its answer, and a line of figures."""

from __future__ import annotations

from edgeattn import maps
from edgeattn.camera.pipeline import Result
from edgeattn.camera.record import Record
from edgeattn.imaging import Picture
from edgeattn.spec import Spec
from edgeattn.tasks import draw, drawing


def paint(result: Result, spec: Spec, *, overlay: bool, lines: tuple[str, ...] = ()) -> Picture:
    """Draw a result as a new picture of the frame's size, (H, W, 3) BGR; `lines` stand at its upper left."""
    picture = result.frame.picture
    if overlay and result.maps:
        picture = maps.overlay(picture, maps.mean_map(result.maps), spec.input)
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
