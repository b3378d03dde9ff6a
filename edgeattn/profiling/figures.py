"""A profile's figures as rows of text, and the lines that say what they rest on: the same for screen, page and Markdown."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from edgeattn.camera.record import MEANING
from edgeattn.profiling.blocks import ATTENTION
from edgeattn.profiling.report import Report, Result
from edgeattn.profiling.roofline import Roof
from edgeattn.timing.statistics import CONFIDENCE, PERCENTILES, SAMPLE_FLOORS, Summary, intervals, jitter, summary, text

LABELS = {"p50": "Median", "max": "Max"} | {f"p{p:g}": f"p{p:g}" for p in PERCENTILES if p != 50}
"""As OpenVINO's benchmark_app calls them, where it has them."""
TITLES = {
    "single": "one inference, back to back, ms",
    "paced": "one inference, frames due at a fixed rate, ms",
    "throughput": "one of several inferences at once, ms",
    "sustained": "one inference, frames back to back for minutes, ms",
    "cold": "process start to first result, ms",
    "live": "one inference in the camera loop, ms",
}
"""What was timed, by mode."""


class Row(NamedTuple):
    """One figure of every artefact."""

    label: str
    """What it is."""
    cells: list[str]
    """In the report's order; `-` where there is none."""


def latency_rows(report: Report) -> list[Row]:
    """One inference: percentiles with intervals, mean, throughput, and what opening costs."""
    results = report.results
    rows = [Row("runs as", [r.executed_precision for r in results])]
    if all(r.latencies_ms.size for r in results):
        rows.append(Row("Average", [number(float(r.latencies_ms.mean())) for r in results]))
        rows.append(Row("Min", [number(float(r.latencies_ms.min())) for r in results]))
    rows += _percentiles([r.latency_ms for r in results], [r.latency_intervals_ms for r in results])
    if any(r.inside_ms.size for r in results):
        rows.append(Row("Median inside engine", [_median(r.inside_ms) for r in results]))
    if all(r.latencies_ms.size > 1 for r in results):
        rows.append(Row("jitter", [number(jitter(r.latencies_ms)) for r in results]))
    if any(r.throughput_fps for r in results):
        rows.append(Row("Throughput, FPS", [number(r.throughput_fps) for r in results]))
    if any("streams" in r.more for r in results):
        rows.append(Row("streams x threads", [f"{r.more.get('streams', 1)} x {r.threads}" for r in results]))
    ratios = [report.ratio(r) for r in results]
    if len(results) > 1 and any(ratios):
        rows.append(Row("over float", [f"{ratio.value:.2f}" if ratio else "-" for ratio in ratios]))
    if report.mode != "cold":
        rows.append(Row("first inference", [number(r.first_ms) for r in results]))
        rows.append(Row("load", [number(r.load_ms) for r in results]))
        if any(r.details.get("compile_ms") for r in results):
            rows.append(Row("  of it compiling", [number(r.details.get("compile_ms")) for r in results]))
    if any(r.memory for r in results):
        rows.append(Row("RSS alone, MB", [number(r.memory.get("rss_mb")) for r in results]))
        rows.append(Row("PSS alone, MB", [number(r.memory.get("pss_mb")) for r in results]))
    return rows


def age_rows(report: Report) -> list[Row]:
    """Ages of the frames; empty where they have none."""
    results = report.results
    if not any(r.ages_ms.size for r in results):
        return []
    return _percentiles([summary(r.ages_ms, PERCENTILES) for r in results], [intervals(r.ages_ms) for r in results])


def stage_rows(report: Report) -> list[Row]:
    """The median of each stage, and of all together."""
    results = report.results
    stages = list(dict.fromkeys(stage for r in results for stage in r.stages_ms))
    if not stages:
        return []
    rows = [Row(stage, [_median(r.stages_ms.get(stage)) for r in results]) for stage in stages]
    together = "together, without the wait" if report.mode == "live" else "together"
    return [*rows, Row(together, [_median(r.frames_ms) for r in results])]


def block_rows(report: Report, *, each: bool) -> list[Row]:
    """What each part of the net takes, with its share; and the attention's, by leaving it out.

    Args:
        report: the profile.
        each: a row for every attention block.
    """
    results = report.results
    if not any(r.blocks for r in results):
        return []
    parts = [dict(r.blocks.parts) if r.blocks else {} for r in results]
    names = list(dict.fromkeys(name for each in parts for name in each))
    rows = [Row(name, [_part(part.get(name)) for part in parts]) for name in names if name != ATTENTION]
    rows.append(Row(ATTENTION, [_part(part.get(ATTENTION)) for part in parts]))
    rows.append(Row("sum over the whole", [f"{r.blocks.accounted:.0%}" if r.blocks else "-" for r in results]))
    rows.append(Row("gained without it", [_saved(r, ATTENTION) for r in results]))
    if each:
        blocks = [{b.name: b for b in r.blocks.blocks if b.is_attention} if r.blocks else {} for r in results]
        for name in dict.fromkeys(name for held in blocks for name in held):
            own = [(held[name].ms, held[name].share) if name in held else None for held in blocks]
            rows.append(Row(name, [_part(part) for part in own]))
            rows.append(Row("  gained without it", [_saved(r, name) for r in results]))
        for name in dict.fromkeys(name for r in results for name in r.roofs):
            rows.append(Row(f"{name}: bound", [_bound(r.roofs.get(name)) for r in results]))
    return rows


def _part(told: tuple[float, float] | None) -> str:
    return f"{told[0]:.3f} {told[1]:.0%}" if told else "-"


def _bound(roof: Roof | None) -> str:
    if roof is None:
        return "-"
    if roof.bound == "memory":
        return f"memory {roof.memory_share:.0%}" if roof.memory_share <= 1 else "caches"
    return "overhead" if roof.bound == "overhead" or roof.compute_share is None else f"compute {roof.compute_share:.0%}"


def _saved(result: Result, name: str) -> str:
    return number(result.without[name].ms) if name in result.without else "-"


def notes(report: Report) -> Iterator[str]:
    """What the figures rest on, what is missing, and what disturbed them."""
    machine: Mapping[str, Any] = report.environment
    flags = " ".join(machine["flags"]) or "no flags known"
    n = min(int(r.latency_ms["n"] or 0) for r in report.results)
    threads = "/".join(sorted({str(r.threads) for r in report.results}))
    yield f"n {n}, threads {threads}; the ranges hold the true value with {CONFIDENCE:.0%} if samples are independent"
    if report.mode == "single":
        yield "one inference: back to back, caches warm; within a frame's way the other stages have used them too"
    if any(r.inside_ms.size for r in report.results):
        yield "inside the engine: by its own clock, without the call and the copies around it; benchmark_app counts so"
    yield f"frames: {report.source}{_warmed(report.results)}"
    yield f"machine: {machine['cpu']}, {machine['usable_cores']} cores ({flags}), virtual: {machine['virtual']}"
    for origin in sorted({r.age_from for r in report.results if r.age_from}):
        yield f"age: {MEANING[origin]}"
    yield from _of_mode(report)
    yield from _missing(report)
    if report.peaks:
        peak = report.peaks
        kinds = {"f32": peak.f32_gops, "bf16": peak.bf16_gops, "int8": peak.int8_gops}
        told = ", ".join(f"{kind} {gops:.0f}" for kind, gops in kinds.items() if gops)
        yield f"the processor's best: {told} billion operations a second, memory {peak.memory_gb_s:.0f} GB/s; caches are quicker"
    counted = [(r.name, r.blocks.counting_over_whole - 1) for r in report.results if r.blocks]
    if counted:
        yield f"an inference whose blocks are counted takes {', '.join(f'{cost:+.0%} in {name}' for name, cost in counted)}"
    spread = [(r.name, r.blocks.between_ms) for r in report.results if r.blocks and r.blocks.between_ms]
    if spread:
        told = ", ".join(f"{ms:.3f} ms in {name}" for name, ms in spread)
        yield f"blocks hold what was counted, and time between the nodes, spread evenly over them: {told}"
    for why in sorted({str(r.more["blocks_missing"]) for r in report.results if "blocks_missing" in r.more}):
        yield f"blocks are not told: {why}"
    for engine, precision, why in report.skipped:
        yield f"not measured: {engine} {precision}: {why}"
    if report.stopped_early:
        yield f"stopped early, after {report.seconds:.1f} s"
    if report.waited_share is None:
        yield "whether other load disturbed this is not known: no /proc/pressure/cpu here"
    for load in report.loaded:
        yield f"loaded, as it is in use: {load}"
    for disturbance in report.disturbances:
        yield f"disturbed, do not rely on the absolute figures: {disturbance}"


def number(value: Any) -> str:
    """Three digits or so; `-` for None."""
    if value is None or not isinstance(value, int | float):
        return "-"
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def _percentiles(figures: Sequence[Summary], ends: Sequence[Mapping[str, tuple[float, float] | None]]) -> list[Row]:
    """Rows of percentiles, with their intervals under the median and the rarest; p99.9 only where somebody has it."""
    rows = []
    for key, label in LABELS.items():
        if key == "p99.9" and not any(each[key] for each in figures):
            continue
        rows.append(Row(label, [number(each[key]) for each in figures]))
        if key in ("p50", "p99", "p99.9") and any(each[key] for each in ends):
            rows.append(Row("  between", [_range(each[key]) for each in ends]))
    rows.append(rows.pop(next(i for i, row in enumerate(rows) if row.label == "Max")))
    return rows


def _range(ends: tuple[float, float] | None) -> str:
    return f"{number(ends[0])} - {number(ends[1])}" if ends else "-"


def _median(values: Any) -> str:
    return number(float(np.median(values))) if values is not None and len(values) else "-"


def _warmed(results: Sequence[Result]) -> str:
    if results[0].mode == "cold":
        return ""
    counts = sorted({r.warmup for r in results})
    most = f"{counts[0]} to {counts[-1]}" if len(counts) > 1 else f"{counts[0]}"
    late = [r.name for r in results if not r.settled]
    still = f", at whose end the times still changed: {', '.join(late)}" if late else ""
    return f"; after {most} frames of warm-up{still}"


def _of_mode(report: Report) -> Iterator[str]:
    for result in report.results:
        more = result.more
        if "last_over_first" in more:
            ratio = more["last_over_first"]
            yield (
                f"{result.name}: the last {ratio['window_s']:.0f} s took {ratio['value']:.2f} times the first "
                f"({ratio['low']:.2f} to {ratio['high']:.2f})"
            )
        if "fps" in more:
            yield f"{result.name}: {more['fps']:.1f} results a second, {more['dropped']} frames dropped"


def _missing(report: Report) -> Iterator[str]:
    """Which percentiles have too few samples, and how long those would take."""
    ages = [r.ages_ms for r in report.results if r.ages_ms.size]
    figures = [summary(each, PERCENTILES) for each in ages] or [r.latency_ms for r in report.results]
    fewest = min(figures, key=lambda figure: int(figure["n"] or 0))
    n = int(fewest["n"] or 0)
    each_s = report.seconds / max(1, n)
    for key in ("p90", "p99") if n else ():
        if fewest[key] is None:
            lacking = SAMPLE_FLOORS[float(key[1:])] - n
            yield f"{key}: {text(fewest, key)}; {math.ceil(lacking * each_s)} s more, measured with --until {key}"
