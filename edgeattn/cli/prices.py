"""Prices of attentions on screen, for `edgeattn attentions --measure` and, on boxes without torch, `edgeattn profile DIR`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from edgeattn.cli.common import console

if TYPE_CHECKING:
    from edgeattn.profiling.prices import PriceList

BUSY = 0.05
"""Share of waiting time above which the machine was too busy for absolute figures."""
WIDE = 116
"""Columns that the widest table takes."""


def steps_bar() -> Progress:
    """A bar for a few long steps, with the time left."""
    return Progress(
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("left"), TimeRemainingColumn(),
        console=console, transient=True, disable=not console.is_terminal,
    )  # fmt: skip


def show_prices(steps: Iterator[tuple[PriceList, int]], what: str) -> PriceList:
    """Run a measurement of prices to its end under a progress bar."""
    with steps_bar() as bar:
        task = bar.add_task(what, total=None)
        for done, (prices, left) in enumerate(steps, 1):
            bar.update(task, total=done + left, completed=done, description=f"{what} {prices.prices[-1].mechanism}")
    return prices


def costs(folder: Path) -> dict[str, dict[str, int]]:
    """Parameters and MACs of each bundle of a folder, as its maker counted them."""
    from edgeattn.bundle import load
    from edgeattn.profiling.prices import find_bundles

    told = {bundle.name: bundle.provenance.get("priced", {}) for bundle in map(load, find_bundles(folder))}
    return {name: {key: priced[key] for key in ("parameters", "macs")} for name, priced in told.items() if priced}


def print_whole(table: Table) -> None:
    """Print a wide table whole, also where the terminal or the file is narrower."""
    Console(width=max(console.width, WIDE), highlight=False).print(table)


def show_table(folder: Path) -> None:
    """Print the prices of a folder's bundles on every box that has priced them, a table a box."""
    from edgeattn.profiling.prices import joined

    spent = costs(folder)
    for box in joined(folder):
        print_whole(_table(box, spent))
        for line in _kept_float(box):
            console.print(line, markup=False)
        line = f"{box.box}: {box.environment['cpu']}; one thread, medians, turn by turn against the empty slot (x)"
        console.print(line, markup=False)
        if (box.waited_share or 0.0) > BUSY:
            console.print(
                f"it was busy ({box.waited_share:.0%} of the time tasks waited): trust the ratios, not the ms"
            )


def _table(box: PriceList, costs: dict[str, dict[str, int]]) -> Table:
    table = Table(box=None, pad_edge=False)
    headings = ("attention", "engine", "float ms", "x", "int8 ms", "x", "int8/float", "nodes int8+float", "ships")
    for place, name in enumerate((*headings, "k params", "MMAC")):
        table.add_column(name, justify="left" if place < 2 else "right", no_wrap=True)
    for p in box.prices:
        int8 = sum(p.nodes.get("int8", {}).values())
        floats = sum(
            sum(kinds.values()) for precision, kinds in p.nodes.items() if precision not in ("int8", "convert")
        )
        spent = costs.get(p.mechanism, {})
        table.add_row(
            p.mechanism, p.engine, f"{p.float_ms:.2f}", f"{p.float_over_none:.2f}", _number(p.int8_ms),
            _number(p.int8_over_none), _number(p.int8_over_float), f"{int8}+{floats}", p.ships,
            f"{spent['parameters'] / 1e3:.0f}" if spent else "-", f"{spent['macs'] / 1e6:.0f}" if spent else "-",
        )  # fmt: skip
    return table


def _kept_float(box: PriceList) -> list[str]:
    """Which types of nodes stayed in float in the int8 graphs, in how many attentions, and why; a line an engine and reason."""
    found: dict[tuple[str, str], Counter[str]] = {}
    for p in box.prices:
        if p.int8_ms is not None:
            for kind, reason in p.kept_float.items():
                found.setdefault((p.engine, reason), Counter())[kind] += 1
    return [
        f"{engine} int8, in float: {', '.join(f'{kind} ({n})' for kind, n in kinds.most_common())}: {reason}"
        for (engine, reason), kinds in sorted(found.items())
    ]


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"
