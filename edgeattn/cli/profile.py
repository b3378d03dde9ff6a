"""`edgeattn profile`: how long a bundle's artefacts take on this machine."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.progress import BarColumn, Progress, TaskID, TaskProgressColumn, TextColumn, TimeRemainingColumn

from edgeattn.cli.common import INTERRUPTED, NO_VERDICT, SkipMissing, console, say, write_json, write_text
from edgeattn.errors import SpecError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from edgeattn.profiling.budgets import Judged
    from edgeattn.profiling.report import Report

REDRAW_S = 0.5
"""Time between two drawings of the progress bar."""

_COLUMNS = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())


def profile(
    bundle: Annotated[
        str, typer.Argument(help="Folder of the bundle, its name in the zoo, or a folder of bundles to price.")
    ],
    *,
    mode: Annotated[
        str,
        typer.Option(
            help="single: one at a time. paced: frames due at --fps, age from then. throughput: as many at once as cores. "
            "sustained: for --minutes. cold: process start to first result. live: the camera loop."
        ),
    ] = "single",
    source: Annotated[
        str | None,
        typer.Option(
            help="Video, folder of pictures, camera or stream that gives the frames; built-in ones otherwise."
        ),
    ] = None,
    engine: Annotated[str | None, typer.Option(help="Only this engine: onnxruntime or openvino.")] = None,
    precision: Annotated[str | None, typer.Option(help="Only this precision: float, bf16 or int8.")] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="Threads that compute one inference.")] = None,
    fps: Annotated[float, typer.Option(min=0.1, help="Frames a second that are due in --mode paced.")] = 30.0,
    minutes: Annotated[float, typer.Option(min=0.05, help="How long --mode sustained lasts.")] = 30.0,
    until: Annotated[
        str | None, typer.Option(help="Measure until there are enough samples for p90, p95, p99 or p99.9.")
    ] = None,
    blocks: Annotated[
        bool, typer.Option("--blocks", help="A line for every attention block, and what the net gains without it.")
    ] = False,
    matrix: Annotated[
        bool,
        typer.Option(
            "--matrix", help="Every artefact of a bundle or a folder of bundles, at one thread and at all cores."
        ),
    ] = False,
    data: Annotated[
        Path | None, typer.Option(help="With --matrix: labelled pictures, for the accuracy of each.")
    ] = None,
    skip_missing: SkipMissing = False,
    samples: Annotated[int | None, typer.Option(min=1, help="Inferences, frames or starts an artefact.")] = None,
    seconds: Annotated[float | None, typer.Option(min=0.1, help="How long to measure altogether.")] = None,
    budget: Annotated[
        str | None,
        typer.Option(
            help="Bounds that every measured artefact must keep, as p99=33ms,age_p99=50ms,rss=200MB, or a TOML file."
        ),
    ] = None,
    json: Annotated[Path | None, typer.Option(help="Write the whole report to this file.")] = None,
    html: Annotated[Path | None, typer.Option(help="Write it as one page with plots and the worst frames.")] = None,
    trace: Annotated[
        Path | None, typer.Option(help="Write the frames for ui.perfetto.dev or chrome://tracing.")
    ] = None,
    markdown: Annotated[Path | None, typer.Option(help="Write it as Markdown, for a pull request.")] = None,
) -> None:
    """Measure how long one inference and a frame's whole way take, in every artefact that the bundle holds.

    The artefacts take turns, so that their ratios hold on a busy machine too. Without --samples, --seconds or --until it
    measures 704 inferences an artefact, for 15 seconds at most. Ctrl-C ends it early and shows what it has.
    --mode sustained and live measure the artefact that `edgeattn run` would take, unless one is named.
    Exit code 1: a budget is exceeded; 3: it cannot be told (too few samples, disturbed, or too close to the bound).
    A folder that `edgeattn attentions --measure --build DIR` wrote gives the price of each attention on this machine.
    """
    from edgeattn.bundle import load
    from edgeattn.profiling import Profiler
    from edgeattn.profiling.budgets import judge, read_budget, rests_on
    from edgeattn.profiling.table import render

    several = not matrix and _holds_bundles(bundle)
    if budget and (matrix or several):
        raise SpecError(
            "--budget holds the figures of one bundle against its bounds: name that bundle, without --matrix"
        )
    if matrix:
        from edgeattn.cli.matrix import matrix as measure_matrix

        measure_matrix(_folder_of(bundle), threads, data, json, html, skip_missing=skip_missing)
        return
    if several:
        _prices(bundle, json)
        return
    bounds = read_budget(budget, mode) if budget else ()
    if bounds and not (samples or seconds or until):
        until = rests_on(bounds)
    opened = load(bundle)
    options: dict[str, Any] = {
        "mode": mode, "source": source, "engine": engine, "precision": precision, "threads": threads, "fps": fps,
        "minutes": minutes, "until": until, "samples": samples, "seconds": seconds,
        "memory": any(bound.of_memory for bound in bounds), "blocks": blocks,
    }  # fmt: skip
    with progress() as bar:
        task = bar.add_task(f"{opened.name}: opening the engines, warming up", total=None)
        bar.refresh()
        with Profiler(opened, **options) as profiler:
            bar.update(task, description=f"{opened.name}: measuring", total=1.0)
            with contextlib.suppress(KeyboardInterrupt):
                follow(profiler, bar, task)
            report = profiler.report()
    judged = [each for result in report.results for each in judge(bounds, report, result)]
    console.print(render(report, each_block=blocks))
    for each in judged:
        say(each.line)
    write_json(json, report.to_json() | {"budget": [each.to_json() for each in judged]})
    _write_others(report, judged, html, trace, markdown)
    for path in (json, html, trace, markdown):
        if path:
            say(f"report: {path}")
    if report.stopped_early:
        raise typer.Exit(INTERRUPTED)
    if any(each.verdict != "passed" for each in judged):
        raise typer.Exit(1 if any(each.verdict == "failed" for each in judged) else NO_VERDICT)


def progress() -> Progress:
    """A bar that is drawn by hand: a thread that redraws would take its time from the inferences."""
    return Progress(*_COLUMNS, console=console, auto_refresh=False, transient=True, disable=not console.is_terminal)


def follow(measuring: Iterable[float], bar: Progress, task: TaskID) -> None:
    """Measure to the end, and draw how far it is now and then."""
    drawn_s = time.monotonic()
    for done in measuring:
        if time.monotonic() - drawn_s > REDRAW_S:
            bar.update(task, completed=done, refresh=True)
            drawn_s = time.monotonic()


def _write_others(
    report: Report, judged: list[Judged], html: Path | None, trace: Path | None, markdown: Path | None
) -> None:
    if html:
        from edgeattn.profiling.page import page

        write_text(html, page(report, [each.line for each in judged]))
    if trace:
        from edgeattn.profiling.trace import trace_events

        write_json(trace, trace_events(report))
    if markdown:
        from edgeattn.profiling.markdown import markdown_of

        write_text(markdown, markdown_of(report, [each.line for each in judged]))


def _folder_of(bundle: str) -> Path:
    """A folder of bundles, or a bundle's, which may be the zoo's."""
    from edgeattn.bundle import load

    return Path(bundle) if _holds_bundles(bundle) else load(bundle).path


def _holds_bundles(folder: str) -> bool:
    from edgeattn.bundle import SUFFIX

    path = Path(folder)
    return path.is_dir() and not (path / "bundle.json").is_file() and any(path.glob(f"*{SUFFIX}"))


def _prices(folder: str, json: Path | None) -> None:
    """Price a folder of bundles, one attention each."""
    from edgeattn.cli.prices import show_prices, show_table
    from edgeattn.profiling.prices import price_file, price_folder

    found = show_prices(price_folder(folder), "pricing")
    show_table(Path(folder))
    write_json(json, found.json())
    console.print(f"prices: {price_file(folder)}", markup=False)
