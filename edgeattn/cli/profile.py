"""`edgeattn profile`: how long a bundle's artefacts take on this machine."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.progress import BarColumn, Progress, TaskID, TaskProgressColumn, TextColumn, TimeRemainingColumn

from edgeattn.cli.common import INTERRUPTED, console, write_json

if TYPE_CHECKING:
    from edgeattn.profiling import Profiler

REDRAW_S = 0.5
"""Time between two drawings of the progress bar."""

_COLUMNS = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())


def profile(
    bundle: Annotated[
        str, typer.Argument(help="Folder of the bundle, its name in the zoo, or a folder of bundles to price.")
    ],
    *,
    source: Annotated[
        str | None,
        typer.Option(
            help="Video, folder of pictures, camera or stream that gives the frames; built-in ones otherwise."
        ),
    ] = None,
    engine: Annotated[str | None, typer.Option(help="Only this engine: onnxruntime or openvino.")] = None,
    precision: Annotated[str | None, typer.Option(help="Only this precision: float, bf16 or int8.")] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="Threads that compute one inference.")] = None,
    samples: Annotated[int | None, typer.Option(min=1, help="Inferences an artefact; p99 needs 662.")] = None,
    seconds: Annotated[float | None, typer.Option(min=0.1, help="How long to measure altogether.")] = None,
    json: Annotated[Path | None, typer.Option(help="Write the whole report to this file.")] = None,
) -> None:
    """Measure how long one inference and a frame's whole way take, in every artefact that the bundle holds.

    The artefacts take turns, so that their ratios hold on a busy machine too. Without --samples and --seconds it
    measures 704 inferences an artefact, for 15 seconds at most. Ctrl-C ends it early and shows what it has.
    A folder that `edgeattn attentions --measure --build DIR` wrote gives the price of each attention on this machine.
    """
    from edgeattn.bundle import load
    from edgeattn.profiling import Profiler
    from edgeattn.profiling.table import render

    if _holds_bundles(bundle):
        _prices(bundle, json)
        return
    opened = load(bundle)
    # Drawn by hand between the turns: a thread that redraws would take its time from the inferences.
    with Progress(
        *_COLUMNS, console=console, auto_refresh=False, transient=True, disable=not console.is_terminal
    ) as bar:
        task = bar.add_task(f"{opened.name}: opening the engines, warming up", total=None)
        bar.refresh()
        with Profiler(
            opened,
            source=source,
            engine=engine,
            precision=precision,
            threads=threads,
            samples=samples,
            seconds=seconds,
        ) as profiler:
            bar.update(task, description=f"{opened.name}: measuring", total=1.0)
            with contextlib.suppress(KeyboardInterrupt):
                _measure(profiler, bar, task)
            report = profiler.report()
    console.print(render(report))
    write_json(json, report.to_json())
    if json:
        console.print(f"report: {json}")
    if report.stopped_early:
        raise typer.Exit(INTERRUPTED)


def _measure(profiler: Profiler, bar: Progress, task: TaskID) -> None:
    drawn_s = time.monotonic()
    for done in profiler:
        if time.monotonic() - drawn_s > REDRAW_S:
            bar.update(task, completed=done, refresh=True)
            drawn_s = time.monotonic()


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
