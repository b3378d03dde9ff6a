"""Plots of a profile as inline SVG."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from markupsafe import Markup, escape

from edgeattn.profiling.figures import number
from edgeattn.profiling.report import Durations

WIDTH, HEIGHT, LEFT, BOTTOM = 600, 260, 46, 30
POINTS = 800
"""Most points of a line."""
COLOURS = ("#2a78d6", "#1d9a6c", "#d9822b", "#9b59b6", "#c0392b", "#16a0b0", "#7f8c8d", "#b8860b")
STAGE_COLOURS = {
    "wait": "#b0b7bf", "capture": "#7f8c8d", "resize": "#16a0b0", "infer": "#2a78d6", "decode": "#9b59b6",
    "draw": "#d9822b", "python": "#7f8c8d", "import": "#16a0b0", "open": "#9b59b6", "first": "#2a78d6",
}  # fmt: skip


def over_time(series: Mapping[str, Durations]) -> Markup:
    """Each duration in the order of time; of long series the worst of neighbours, so that no outlier is lost."""
    top = max((float(each.max()) for each in series.values() if each.size), default=1.0)
    drawn = []
    for colour, (name, values) in zip(_colours(), series.items(), strict=False):
        if values.size:
            step = max(1, math.ceil(values.size / POINTS))
            worst = np.maximum.reduceat(values, np.arange(0, values.size, step))
            points = ((i / max(1, len(worst) - 1), ms / top) for i, ms in enumerate(worst.tolist()))
            drawn.append(_line(points, colour, name))
    return _frame(drawn, list(series), top, [(0, "first"), (1, "last")])


def tails(series: Mapping[str, Durations]) -> Markup:
    """Duration over percentile, nines apart: the tail of each distribution."""
    most = max((each.size for each in series.values()), default=1)
    nines = max(2.0, math.log10(max(most, 10)))
    top = max((float(each.max()) for each in series.values() if each.size), default=1.0)
    drawn = []
    for colour, (name, values) in zip(_colours(), series.items(), strict=False):
        ordered = np.sort(values)
        kept = np.unique(
            np.concatenate([np.linspace(0, len(ordered) - 1, 200), len(ordered) - 1 - np.arange(200)]).astype(int)
        )
        kept = kept[kept >= 0] if len(ordered) else kept[:0]
        points = ((math.log10(len(ordered) / (len(ordered) - i)) / nines, float(ordered[i]) / top) for i in kept)
        drawn.append(_line(points, colour, name))
    marks = [(0.0, "0"), (math.log10(2) / nines, "p50")]
    marks += [(k / nines, f"p{100 - 10 ** (2 - k):g}") for k in range(1, math.floor(nines) + 1)]
    return _frame(drawn, list(series), top, marks)


def windows(series: Mapping[str, Sequence[tuple[float, float]]]) -> Markup:
    """Medians of a long run, minute by minute: (seconds, ms)."""
    longest = max((points[-1][0] for points in series.values() if points), default=1.0)
    top = 1.1 * max((ms for points in series.values() for _, ms in points), default=1.0)
    drawn = [
        _line(((s / longest, ms / top) for s, ms in points), colour, name)
        for colour, (name, points) in zip(_colours(), series.items(), strict=False)
    ]
    return _frame(drawn, list(series), top, [(0, "0"), (1, f"{longest:.0f} s")])


def scatter(points: Sequence[tuple[float, float, str, bool]], x_name: str, y_name: str) -> Markup:
    """Points (x, y, name, filled) over axes that fit them; x is logarithmic, as times differ by factors."""
    low, high = (f(x for x, *_ in points) for f in (min, max))
    least, most = (f(y for _, y, *_ in points) for f in (min, max))
    margin = 0.1 * (most - least) or 1.0
    least, most, span = least - margin, most + margin, math.log(high / low) or 1.0
    inside = [
        f'<line x1="{LEFT}" x2="{WIDTH - 8}" y1="{_y(v):.1f}" y2="{_y(v):.1f}" stroke="currentColor" stroke-opacity=".15"/>'
        f'<text x="{LEFT - 5}" y="{_y(v) + 4:.1f}" text-anchor="end">{number(least + v * (most - least))}</text>'
        for v in (0, 0.25, 0.5, 0.75, 1)
    ]
    ends = ((0.0, f"{number(low)} {x_name}", "start"), (1.0, f"{number(high)} {x_name}", "end"))
    inside += [
        f'<text x="{_x(x):.1f}" y="{HEIGHT - 12}" text-anchor="{a}">{escape(text)}</text>' for x, text, a in ends
    ]
    inside.append(f'<text x="{LEFT}" y="13">{escape(y_name)}</text>')
    for x, y, name, filled in points:
        at = _x(math.log(x / low) / span), _y((y - least) / (most - least))
        inside.append(
            f'<circle cx="{at[0]:.1f}" cy="{at[1]:.1f}" r="5" fill="{COLOURS[0] if filled else "none"}" stroke="{COLOURS[0]}">'
            f"<title>{escape(name)}: {number(x)} {escape(x_name)}, {number(y)} {escape(y_name)}</title></circle>"
        )
        if filled:
            side = "end" if at[0] > WIDTH / 2 else "start"
            inside.append(
                f'<text x="{at[0] + (-9 if side == "end" else 9):.1f}" y="{at[1] + 4:.1f}" text-anchor="{side}">'
                f"{escape(name)}</text>"
            )
    return _svg("".join(inside), HEIGHT)


def waterfall(rows: Sequence[tuple[str, Sequence[tuple[str, float]]]]) -> Markup:
    """Bars of stages one behind the other: a row a name, each a list of (stage, ms)."""
    longest = max((sum(ms for _, ms in stages) for _, stages in rows), default=1.0) or 1.0
    names, height, left = [name for name, _ in rows], 24, 150
    drawn, used = [], dict.fromkeys(stage for _, stages in rows for stage, _ in stages)
    for place, (name, stages) in enumerate(rows):
        x = float(left)
        y = 26 + place * height
        drawn.append(f'<text x="{left - 6}" y="{y + 13}" text-anchor="end">{escape(name)}</text>')
        for stage, ms in stages:
            width = (WIDTH - left - 60) * ms / longest
            drawn.append(
                f'<rect x="{x:.1f}" y="{y}" width="{max(width, 0):.1f}" height="17" fill="{_of_stage(stage)}">'
                f"<title>{escape(stage)} {number(ms)} ms</title></rect>"
            )
            x += width
        drawn.append(f'<text x="{x + 5:.1f}" y="{y + 13}">{number(sum(ms for _, ms in stages))} ms</text>')
    x = float(left)
    for stage in used:
        drawn.append(f'<rect x="{x:.0f}" y="5" width="10" height="10" fill="{_of_stage(stage)}"/>')
        drawn.append(f'<text x="{x + 14:.0f}" y="14">{escape(stage)}</text>')
        x += 26 + 7 * len(stage)
    return _svg("".join(drawn), 34 + len(names) * height)


def _of_stage(stage: str) -> str:
    return STAGE_COLOURS.get(stage, COLOURS[0])


def _colours() -> Iterator[str]:
    while True:
        yield from COLOURS


def _line(points: Iterator[tuple[float, float]], colour: str, name: str) -> str:
    placed = " ".join(f"{_x(x):.1f},{_y(y):.1f}" for x, y in points)
    return f'<polyline points="{placed}" fill="none" stroke="{colour}" stroke-width="1.4"><title>{escape(name)}</title></polyline>'


def _frame(drawn: Sequence[str], names: Sequence[str], top: float, marks: Sequence[tuple[float, str]]) -> Markup:
    """Axes around lines: milliseconds from 0 to `top`; marks along x; the names with their colours."""
    inside = [
        f'<line x1="{LEFT}" x2="{WIDTH - 8}" y1="{_y(v):.1f}" y2="{_y(v):.1f}" stroke="currentColor" stroke-opacity=".15"/>'
        f'<text x="{LEFT - 5}" y="{_y(v) + 4:.1f}" text-anchor="end">{number(v * top)}</text>'
        for v in (0, 0.25, 0.5, 0.75, 1)
    ]
    inside += [
        f'<text x="{_x(x):.1f}" y="{HEIGHT - 12}" text-anchor="{"end" if x == 1 else "middle"}">{escape(mark)}</text>'
        for x, mark in marks
    ]
    x = float(LEFT)
    for colour, name in zip(_colours(), names, strict=False):
        inside.append(f'<rect x="{x:.0f}" y="4" width="10" height="10" fill="{colour}"/>')
        inside.append(f'<text x="{x + 14:.0f}" y="13">{escape(name)}</text>')
        x += 22 + 5.4 * len(name)
    return _svg("".join([*inside, *drawn]), HEIGHT)


def _svg(inside: str, height: int) -> Markup:
    return Markup(  # all that comes from outside was escaped
        f'<svg viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}" role="img" font-size="11" '
        f'fill="currentColor">{inside}</svg>'
    )


def _x(value: float) -> float:
    return LEFT + value * (WIDTH - LEFT - 12)


def _y(value: float) -> float:
    return HEIGHT - BOTTOM - value * (HEIGHT - BOTTOM - 24)
