"""An evaluation as one HTML file that needs nothing else: pictures and charts are inside it."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from markupsafe import Markup, escape
from numpy.typing import NDArray

from edgeattn._cv2 import cv2
from edgeattn.evaluation import classify
from edgeattn.imaging import Picture

TEMPLATE = Path(__file__).with_name("report.html.jinja")
SIDE = 160
"""Pixels across a picture in the report, where there is nothing small to be seen."""
WIDTH, HEIGHT, MARGIN = 320, 240, 34


@dataclass(frozen=True)
class Case:
    """One picture in the report."""

    seen: str
    """What the model sees, as base64 of a JPEG."""
    looked: str
    """The same under its attention."""
    truth: str | None
    """Its label; None: not labelled, or told by the picture."""
    answer: str
    """What the model answers."""
    percent: int | None
    """With which probability; None: that says nothing here."""
    name: str
    """The picture's file."""
    note: str = ""
    """What else is to be said."""


@dataclass(frozen=True)
class Chart:
    """One chart."""

    title: str
    """Its title."""
    svg: Markup
    """Itself."""
    caption: str
    """What it says."""


def jpeg(picture: Picture, side: int = SIDE) -> str:
    """A picture, (H, W, 3) BGR bytes, small and as base64 of a JPEG."""
    scale = side / max(picture.shape[:2])
    how = cv2.INTER_AREA if scale < 1 else cv2.INTER_NEAREST
    small = cv2.resize(picture, None, fx=scale, fy=scale, interpolation=how)
    return base64.b64encode(cv2.imencode(".jpg", small, [cv2.IMWRITE_JPEG_QUALITY, 85])[1].tobytes()).decode()


def write(path: Path, **content: Any) -> None:
    """Fill the template and write the file in one step.

    Args:
        path: the file.
        content: `title`, `subtitle`, `notes`, `columns`, `rows`, and as far as there are such: `cases_title`, `cases`
            (of `Case`) and `legend`, `charts` (of `Chart`), `matrix` (from `matrix`), `confused`, `classes` (a table, its head
            first), `foot`.
    """
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.ChainableUndefined, trim_blocks=True)
    text = environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(**content)
    partial = path.with_name(f".{path.name}")
    path.parent.mkdir(parents=True, exist_ok=True)
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)


def matrix(counts: NDArray[np.int64], labels: Sequence[str], who: str) -> dict[str, Any]:
    """A confusion matrix for the template: right answers green, wrong ones red, both by their share of the class."""
    names = [*labels, classify.NONE][: len(counts)]
    rows = []
    for i, row in enumerate(counts):
        total = max(1, int(row.sum()))
        cells = [
            {
                "count": int(count),
                "share": round(float(count) / total, 3),
                "colour": "42,170,119" if i == j else "221,51,51",
            }
            for j, count in enumerate(row)
        ]
        rows.append((names[i], cells))
    return {"names": names, "rows": rows, "who": who}


def reliability(found: classify.Calibration) -> Chart:
    """Accuracy over confidence; on the diagonal, a probability means what it says."""
    bars = "".join(
        f'<circle cx="{_x(c):.1f}" cy="{_y(a):.1f}" r="{2 + 7 * (n / max(found.n)) ** 0.5:.1f}" fill="#2a7" fill-opacity=".7"/>'
        for c, a, n in zip(found.confidence, found.accuracy, found.n, strict=True)
    )
    line = f'<line x1="{_x(0)}" y1="{_y(0)}" x2="{_x(1)}" y2="{_y(1)}" stroke="currentColor" stroke-dasharray="4"/>'
    return Chart(
        "Calibration",
        _frame(line + bars, "probability of the answer", "share right"),
        f"Expected calibration error {100 * found.error:.1f} points. A circle is a range of probabilities.",
    )


def curves(title: str, series: Mapping[str, tuple[Sequence[float], str]], x: str, y: str, caption: str) -> Chart:
    """Lines by name, each with its values between 0 and 1 at even steps, and its colour."""
    drawn = []
    for place, (name, (values, colour)) in enumerate(series.items()):
        points = " ".join(f"{_x(i / (len(values) - 1)):.1f},{_y(v):.1f}" for i, v in enumerate(values))
        drawn.append(f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="2"/>')
        drawn.append(
            f'<text x="{WIDTH - 6}" y="{MARGIN / 2 + 14 * place}" text-anchor="end" fill="{colour}" font-size="12">{name}</text>'
        )
    return Chart(title, _frame("".join(drawn), x, y), caption)


def bars(title: str, values: Sequence[tuple[str, float, str]], *, top: float, x: str, y: str, caption: str) -> Chart:
    """Bars in a row, each with its name, its value (cut off at `top`) and its colour."""
    width = (_x(1) - _x(0)) / max(1, len(values))
    drawn = [
        f'<rect x="{_x(0) + i * width:.1f}" y="{_y(share):.1f}" width="{0.8 * width:.1f}" height="{_y(0) - _y(share):.1f}" '
        f'fill="{colour}"><title>{escape(name)}: {value:.1f}</title></rect>'
        for i, (name, value, colour) in enumerate(values)
        for share in [min(1.0, max(0.0, value / top))]
    ]
    return Chart(title, _frame("".join(drawn), x, y, top=top, numbered=False), caption)


def _x(value: float) -> float:
    return MARGIN + value * (WIDTH - MARGIN - 8)


def _y(value: float) -> float:
    return HEIGHT - MARGIN - value * (HEIGHT - MARGIN - 8)


def _frame(inside: str, x: str, y: str, *, top: float = 1.0, numbered: bool = True) -> Markup:
    """Axes around a drawing: y from 0 to `top`; x from 0 to 1, or not `numbered`."""
    ticks = "".join(
        f'<text x="{_x(v):.0f}" y="{HEIGHT - MARGIN + 14}" text-anchor="middle">{f"{v:g}" if numbered else ""}</text>'
        f'<text x="{MARGIN - 4}" y="{_y(v) + 4:.0f}" text-anchor="end">{top * v:g}</text>'
        for v in (0, 0.5, 1)
    )
    return Markup(
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}" role="img">'
        f'<rect x="{MARGIN}" y="8" width="{WIDTH - MARGIN - 8}" height="{HEIGHT - MARGIN - 8}" fill="none" stroke="currentColor" '
        f'stroke-opacity=".3"/><g font-size="10" fill="currentColor">{ticks}'
        f'<text x="{_x(0.5):.0f}" y="{HEIGHT - 4}" text-anchor="middle">{x}</text>'
        f'<text transform="translate(10 {_y(0.5):.0f}) rotate(-90)" text-anchor="middle">{y}</text></g>{inside}</svg>'
    )
