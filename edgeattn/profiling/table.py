"""A profile on the screen."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from rich.console import Group
from rich.table import Table
from rich.text import Text

from edgeattn.profiling.report import STAGES, Report
from edgeattn.timing.statistics import SAMPLE_FLOORS, Summary, summary, text


def render(report: Report) -> Group:
    """Both tables (one inference, a frame's way) and the lines that say what they rest on."""
    return Group(_latencies(report), _stages(report), *map(Text, _notes(report)))


def _latencies(report: Report) -> Table:
    n = min(len(result.latencies_ms) for result in report.results)
    threads = "/".join(sorted({str(result.threads) for result in report.results}))
    table = _table(f"{report.bundle}: one inference, ms (n {n}, threads {threads})")
    table.add_column("runs as", no_wrap=True)
    for name in ("p50", "p90", "p99", "max", "/float", "first", "load"):
        table.add_column(name, justify="right", no_wrap=True)
    for result in report.results:
        latency, ratio = result.latency_ms, report.ratio(result)
        table.add_row(
            f"{result.engine} {result.precision}",
            result.executed_precision,
            *(_cell(latency, key) for key in ("p50", "p90", "p99", "max")),
            "-" if ratio is None else f"{ratio:.2f}",
            _number(result.first_ms),
            _number(result.load_ms),
        )
    return table


def _stages(report: Report) -> Table:
    n = min(len(result.frames_ms) for result in report.results)
    table = _table(f"\na frame's way, p50 in ms (n {n})")
    for stage in (*STAGES, "together"):
        table.add_column(stage, justify="right", no_wrap=True)
    for result in report.results:
        figures = [summary(values) for values in (*result.stages_ms.values(), result.frames_ms)]
        table.add_row(f"{result.engine} {result.precision}", *(_cell(figure, "p50") for figure in figures))
    return table


def _table(title: str) -> Table:
    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    table.add_column("", no_wrap=True)
    return table


def _notes(report: Report) -> Iterator[str]:
    machine: dict[str, Any] = dict(report.environment)
    flags = " ".join(machine["flags"]) or "no flags known"
    yield "\none inference: back to back, caches warm; within a frame's way the other stages have used them too"
    yield f"frames: {report.source}; after {report.results[0].warmup} frames of warm-up"
    yield f"machine: {machine['cpu']}, {machine['usable_cores']} cores ({flags}), virtual: {machine['virtual']}"
    yield from _missing(report)
    for engine, precision, why in report.skipped:
        yield f"not measured: {engine} {precision}: {why}"
    if report.stopped_early:
        yield f"stopped early, after {report.seconds:.1f} s"
    if report.waited_share is None:
        yield "whether other load disturbed this is not known: no /proc/pressure/cpu here"
    for disturbance in report.disturbances:
        yield f"disturbed, do not rely on the absolute figures: {disturbance}"


def _missing(report: Report) -> Iterator[str]:
    fewest = min(report.results, key=lambda result: len(result.latencies_ms)).latency_ms
    for key in ("p90", "p99"):
        if fewest[key] is None:
            floor = SAMPLE_FLOORS[float(key[1:])]
            seconds = report.seconds / max(1, int(fewest["n"] or 0)) * floor
            yield f"{key}: {text(fewest, key)}; --samples {floor} takes about {math.ceil(seconds)} s"


def _cell(figures: Summary, key: str) -> str:
    value = figures[key]
    return "-" if value is None else _number(value)  # why is said below the tables


def _number(ms: float) -> str:
    return f"{ms:.0f}" if ms >= 100 else f"{ms:.1f}" if ms >= 10 else f"{ms:.2f}"
