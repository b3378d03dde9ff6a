"""`edgeattn compare`: is the one slower than the other?"""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgeattn.cli.common import INTERRUPTED, NO_VERDICT, say, write_json, write_text
from edgeattn.errors import DataError

if TYPE_CHECKING:
    from edgeattn.profiling.compare import Comparison
    from edgeattn.profiling.duel import Duel


def compare(
    a: Annotated[str, typer.Argument(metavar="A", help="The one before: a bundle, or a profile's JSON file.")],
    b: Annotated[str, typer.Argument(metavar="B", help="The one after, of the same kind.")],
    *,
    engine: Annotated[str | None, typer.Option(help="Only this engine: onnxruntime or openvino.")] = None,
    precision: Annotated[str | None, typer.Option(help="Only this precision: float, bf16 or int8.")] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="Threads that compute one inference.")] = None,
    seconds: Annotated[float, typer.Option(min=0.1, help="How long to measure two bundles altogether.")] = 20.0,
    force: Annotated[
        bool, typer.Option("--force", help="Compare different models or machines, too; the report says so.")
    ] = False,
    json: Annotated[Path | None, typer.Option(help="Write the comparison to this file.")] = None,
    markdown: Annotated[Path | None, typer.Option(help="Write it as Markdown, for a pull request.")] = None,
) -> None:
    """Say whether B is faster or slower than A, by how much, and how sure that is.

    Two bundles are measured on this machine in turns, which a restless machine does not mislead. Two JSON files of
    `edgeattn profile` were measured apart: what is below 5 % counts as nothing there.
    Exit code 1: slower; 3: too noisy to tell.
    """
    files = [Path(each).suffix == ".json" and Path(each).is_file() for each in (a, b)]
    if files[0] != files[1]:
        raise DataError(f"{a} and {b}: compare two bundles, or two JSON files of edgeattn profile")
    stopped = False
    if files[0]:
        from edgeattn.profiling.compare import compare_files

        found = compare_files(Path(a), Path(b), force=force)
    else:
        from edgeattn.bundle import load
        from edgeattn.profiling.duel import Duel

        options = {"engine": engine, "precision": precision, "threads": threads, "seconds": seconds, "force": force}
        found, stopped = _watched(Duel(load(a), load(b), **options))  # type: ignore[arg-type]
    for line in lines(found):
        say(line)
    write_json(json, found.to_json())
    if markdown:
        write_text(markdown, "\n".join(_markdown(found)) + "\n")
    for path in (json, markdown):
        if path:
            say(f"report: {path}")
    if stopped:
        raise typer.Exit(INTERRUPTED)
    if found.verdict in ("slower", "too noisy"):
        raise typer.Exit(1 if found.verdict == "slower" else NO_VERDICT)


def lines(found: Comparison) -> list[str]:
    """A comparison in words."""
    return [
        f"{found.b} against {found.a}, {found.how}",
        *(each.line for each in found.differences),
        *found.notes,
        f"verdict: {found.verdict}",
    ]


def _watched(duel: Duel) -> tuple[Comparison, bool]:
    """Measure under a progress bar; and whether Ctrl-C ended it early."""
    from edgeattn.cli.profile import follow, progress

    stopped = True
    with progress() as bar, contextlib.suppress(KeyboardInterrupt):
        task = bar.add_task("in turns", total=1.0)
        bar.refresh()
        follow(duel, bar, task)
        stopped = False
    return duel.comparison(), stopped


def _markdown(found: Comparison) -> list[str]:
    rows = [
        f"| {each.name} | {each.before_ms:.3f} | {each.after_ms:.3f} | {100 * (each.ratio.value - 1):+.1f} % "
        f"({100 * (each.ratio.low - 1):+.1f} to {100 * (each.ratio.high - 1):+.1f}) | {each.verdict} |"
        for each in found.differences
    ]
    heads = ["| | before, ms | after, ms | change | |", "|---|---:|---:|---:|---|"]
    return [f"### {found.verdict}", "", *heads, *rows, "", *(f"- {note}" for note in found.notes)]
