"""A profile on the screen."""

from __future__ import annotations

from rich.console import Group
from rich.table import Table
from rich.text import Text

from edgeattn.profiling.figures import TITLES, Row, age_rows, block_rows, latency_rows, notes, stage_rows
from edgeattn.profiling.report import Report


def render(report: Report, *, each_block: bool = False) -> Group:
    """The tables (one inference, ages, a frame's way) and the lines that say what they rest on."""
    parts = [
        (f"{report.bundle}: {TITLES[report.mode]}", latency_rows(report)),
        ("age of a frame, ms", age_rows(report)),
        (
            "a frame's way, medians in ms" if report.mode != "cold" else "parts of a start, medians in ms",
            stage_rows(report),
        ),
    ]
    parts.append(("parts of one inference, ms and share", block_rows(report, each=each_block)))
    tables = [_table(report, title, rows) for title, rows in parts if rows]
    return Group(*tables, *map(Text, notes(report)))


def _table(report: Report, title: str, rows: list[Row]) -> Table:
    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    table.add_column("", no_wrap=True)
    for result in report.results:
        table.add_column(f"{result.engine}\n{result.precision}", justify="right", no_wrap=True)
    for row in rows:
        table.add_row(row.label, *row.cells)
    table.add_row("")
    return table
