"""A profile as one HTML page that needs nothing else: figures, plots, stages, the worst frames, what was executed."""

from __future__ import annotations

import collections
from collections.abc import Iterator, Sequence
from pathlib import Path

import jinja2
import numpy as np
from markupsafe import Markup

from edgeattn.profiling import plots
from edgeattn.profiling.figures import TITLES, age_rows, block_rows, latency_rows, notes, stage_rows
from edgeattn.profiling.report import Report, Result
from edgeattn.timing.sensors import told

TEMPLATE = Path(__file__).with_name("page.html.jinja")
WORST = 5
"""Worst frames shown of each artefact."""


def page(report: Report, budget: Sequence[str]) -> str:
    """The page.

    Args:
        report: the profile.
        budget: what is to be said of the budget, line by line.
    """
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(
        title=f"{report.bundle}: {TITLES[report.mode]}",
        report=report,
        heads=[result.name for result in report.results],
        tables=[
            (TITLES[report.mode], latency_rows(report)),
            ("age of a frame, ms", age_rows(report)),
            ("stages, medians in ms", stage_rows(report)),
            ("parts of one inference, ms and share", block_rows(report, each=True)),
        ],
        budget=budget,
        notes=list(notes(report)),
        charts=list(_charts(report)),
        worst=[(result.name, plots.waterfall(rows)) for result in report.results if (rows := worst_frames(result))],
        executed=[(result, _kinds(result)) for result in report.results],
        sensors=told(list(report.readings)) if report.readings else {},
    )


def worst_frames(result: Result, most: int = WORST) -> list[tuple[str, list[tuple[str, float]]]]:
    """The frames with the greatest age (without ages: time), the worst first: where their time went, by stages."""
    whole = len(result.frames_ms)
    if not whole or result.mode == "cold":
        return []
    ages = result.ages_ms[-whole:] if result.ages_ms.size >= whole else None
    times = result.frames_ms if ages is None else ages
    rows = []
    for i in np.argsort(times)[::-1][:most].tolist():
        stages = [(stage, float(ms[i])) for stage, ms in result.stages_ms.items()]
        if result.mode == "live":  # it waited before the frame came, and not while it grew old
            stages = [(stage, ms) for stage, ms in stages if stage != "capture"]
        waited = 0.0 if ages is None else float(ages[i]) - sum(ms for _, ms in stages)
        rows.append((f"frame {i}", [("wait", max(0.0, waited)), *stages] if ages is not None else stages))
    return rows


def _charts(report: Report) -> Iterator[tuple[str, Markup, str]]:
    """Title, plot and what it says."""
    latencies = {r.name: r.latencies_ms for r in report.results if r.latencies_ms.size}
    ages = {r.name: r.ages_ms for r in report.results if r.ages_ms.size}
    if latencies:
        yield (
            "Tail",
            plots.tails(latencies),
            "Milliseconds over the percentile; every step to the right is another nine.",
        )
        yield "Over time", plots.over_time(latencies), "Each one in the order of time, ms."
    if ages:
        yield "Age, tail", plots.tails(ages), "Age of a frame over the percentile, ms."
        yield "Age over time", plots.over_time(ages), "Age of each frame, ms."
    minutes = {
        r.name: [(w["until_s"], w["latency_ms"]["p50"]) for w in r.more["windows"]]
        for r in report.results
        if r.more.get("windows")
    }
    if minutes:
        yield "Minute by minute", plots.windows(minutes), "Median of each minute, ms."
    rows = [(r.name, [(s, float(np.median(ms))) for s, ms in r.stages_ms.items() if ms.size]) for r in report.results]
    if any(stages for _, stages in rows):
        yield "Stages", plots.waterfall(rows), "Median of each stage, one behind the other."


def _kinds(result: Result) -> list[tuple[str, str]]:
    """Nodes as executed: precision, and how many of each type."""
    counts: dict[str, collections.Counter[str]] = {}
    for layer in result.layers:
        counts.setdefault(layer.precision, collections.Counter())[layer.kind] += 1
    return [(to, ", ".join(f"{n} {kind}" for kind, n in kinds.most_common())) for to, kinds in counts.items()]
