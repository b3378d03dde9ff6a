"""`edgeattn profile DIR --matrix`: which artefact, at how many threads, is quickest here, and at what accuracy."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from rich.table import Table

from edgeattn.cli.common import say, write_json, write_text
from edgeattn.cli.prices import print_whole, steps_bar

if TYPE_CHECKING:
    from edgeattn.bundle import Bundle
    from edgeattn.cli.verify import Pictures
    from edgeattn.profiling.matrix import Entry

Accuracies = dict[tuple[str, str, str], float]
"""The tasks' figures by digest, engine and precision."""


def matrix(
    folder: Path,
    threads: int | None,
    data: Path | None,
    json: Path | None,
    html: Path | None,
    *,
    skip_missing: bool = False,
) -> None:
    """Measure, and show the table; Ctrl-C keeps what was measured, and the next call goes on from there."""
    from edgeattn.cli.verify import Pictures
    from edgeattn.engines import default_threads
    from edgeattn.profiling.matrix import SCHEMA, Matrix, bundles_of, memory_of
    from edgeattn.timing import environment, monotonic_ns, pressure

    bundles, memory = bundles_of(folder), memory_of(folder)
    # Read before anything is measured: an hour later is too late to hear that a picture is missing.
    pictures = [Pictures(data, bundle.spec, skip_missing=skip_missing) for bundle in bundles] if data else []
    for note in dict.fromkeys(note for each in pictures for note in each.notes):
        say(note)
    measured = Matrix(bundles, [threads] if threads else sorted({1, default_threads()}), memory)
    before, stopped = pressure.read(monotonic_ns), False
    try:
        with steps_bar() as bar:
            task = bar.add_task(f"{len(measured)} cells", total=None)
            for done, total in measured.measure():
                bar.update(task, completed=done, total=total)
    except KeyboardInterrupt:
        stopped = True
    entries = measured.entries(_accuracies(bundles, pictures) if pictures and not stopped else None)
    waited = pressure.read(monotonic_ns).waited_share(before)
    print_whole(_table(entries))
    if waited is not None and waited > 0.05:
        say(f"tasks waited for a core {waited:.0%} of the time: rounds fall under the same weather, but trust no ms")
    say(f"measured: {memory} (what stands there is not measured again; remove it to start anew)")
    report = {"schema": SCHEMA, "cells": [entry.json() for entry in entries], "environment": environment()}
    write_json(json, report | {"stopped_early": stopped, "waited_share": waited})
    if html:
        write_text(html, _page(folder, entries))
    for path in (json, html):
        if path:
            say(f"report: {path}")


def _accuracies(bundles: list[Bundle], of: list[Pictures]) -> Accuracies:
    """Each artefact on labelled pictures, of whichever form its task wants."""
    from edgeattn.deploy.verify import verify

    found: Accuracies = {}
    for bundle, pictures in zip(bundles, of, strict=True):
        say(f"{bundle.name}: answering {len(pictures)} pictures")
        report = verify(bundle, iter(pictures))
        found |= {(bundle.digest(), r.engine, r.precision): r.figure for r in report.results if r.figure is not None}
    return found


def _table(entries: list[Entry]) -> Table:
    table = Table(box=None, pad_edge=False)
    for place, name in enumerate(
        ("bundle", "engine", "precision", "threads", "ms", "rounds from", "to", _name(entries), "")
    ):
        table.add_column(name, justify="left" if place < 3 or place == 8 else "right", no_wrap=True)
    for entry in entries:
        cell, of = entry.cell, entry.ms or (entry.median_ms,)
        times = [f"{ms:.2f}" for ms in (entry.median_ms, min(of), max(of))]
        figure = f"{entry.figure:.1%}" if entry.figure is not None else "-"
        note = entry.failure or ("nothing quicker is as accurate" if entry.best and entry.figure is not None else "")
        table.add_row(cell.bundle, cell.engine, cell.precision, str(cell.threads), *times, figure, note)
    return table


def _name(entries: list[Entry]) -> str:
    """What the bundles are judged by, in words."""
    from edgeattn.cli.verify import figure_name

    return " or ".join(dict.fromkeys(figure_name(entry.key) for entry in entries))


def _page(folder: Path, entries: list[Entry]) -> str:
    import jinja2

    from edgeattn.profiling.plots import scatter

    known = [entry for entry in entries if entry.ms and entry.figure is not None]
    points = [
        (
            e.median_ms,
            100 * (e.figure or 0),
            f"{e.cell.bundle} {e.cell.engine} {e.cell.precision}, {e.cell.threads} threads",
            e.best,
        )
        for e in known
    ]
    template = Path(__file__).with_name("matrix.html.jinja").read_text(encoding="utf-8")
    rows = [
        [e.cell.bundle, e.cell.engine, e.cell.precision, e.cell.threads, e.median_ms, e.figure, e.best] for e in entries
    ]
    plot = scatter(points, "ms", f"{_name(entries)}, %") if points else None
    return (
        jinja2.Environment(autoescape=True)
        .from_string(template)
        .render(folder=folder, rows=rows, plot=plot, figure=_name(entries))
    )
