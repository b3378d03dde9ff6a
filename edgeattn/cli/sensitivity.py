"""`edgeattn sensitivity`: which layers and attention blocks int8 costs most."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from edgeattn.cli.common import need_training, say, write_json
from edgeattn.cli.prices import print_whole
from edgeattn.cli.verify import figure_name

if TYPE_CHECKING:
    from collections.abc import Sequence

    from edgeattn.bundle import Bundle
    from edgeattn.deploy.sensitivity import Row, Sensitivity

LEGEND = "error dB: signal to error of its output under int8; the others: changes if it is left in float, accuracies in points"
WORST = 12
"""Most layers on screen."""
TOP_DB = 60.0
"""Height of the chart: above, nothing is lost."""
LAYER, ATTENTION = "#58a", "#c60"
"""Colours of a layer, and of one in an attention."""


def sensitivity(
    bundle: Annotated[str, typer.Argument(help="A bundle's folder.")],
    *,
    run: Annotated[Path, typer.Option(help="The run that it was exported from: names the pictures and their split.")],
    engine: Annotated[str | None, typer.Option(help="onnxruntime or openvino; default: both.")] = None,
    minutes: Annotated[
        float, typer.Option(min=0.0, help="Time to spend; what is measured is kept in RUN, and a second call goes on.")
    ] = 10.0,
    json: Annotated[Path | None, typer.Option(help="Write the table there.")] = None,
    html: Annotated[Path | None, typer.Option(help="Write it there as a page with charts.")] = None,
) -> None:
    """Show what int8 costs each layer and attention block, and what leaving it in float would bring.

    Every row with figures is a file that was quantized without that layer, and measured. Changes nothing in the bundle.
    """
    need_training("edgeattn sensitivity")
    from edgeattn.bundle import load
    from edgeattn.deploy.sensitivity import SCHEMA
    from edgeattn.engines import NAMES, check_names
    from edgeattn.train.recipe import load_recipe
    from edgeattn.train.sources import open_data
    from edgeattn.workflow import sensitivity_run

    check_names(engine, None)
    loaded = load(bundle)
    data = open_data(load_recipe(run), run)
    found = sensitivity_run(loaded, data, run, [engine] if engine else NAMES, minutes=minutes, progress=True)
    for one in found:
        print_whole(_table(one))
        say(_told(one))
    say(LEGEND)
    write_json(json, {"schema": SCHEMA, "bundle": str(loaded.path), "results": [one.json() for one in found]})
    if html:
        _page(html, loaded, found)
        say(f"page: {html}")


def _columns(found: Sensitivity) -> list[str]:
    return ["left in float", "error dB", figure_name(found.base.key), "agreement", "maps", "ms"]


def _table(found: Sensitivity) -> Table:
    table = Table(title=f"{found.engine}: what int8 costs", title_justify="left", box=None, pad_edge=False)
    for place, name in enumerate(_columns(found)):
        table.add_column(name, justify="right" if place else "left", no_wrap=True)
    layers = [row for row in found.rows if row.kind == "layer"]
    for row in [*(row for row in found.rows if row.kind != "layer"), *layers[:WORST]]:
        table.add_row(*_cells(found, row), style="bold" if row.kind != "layer" else None)
    if len(layers) > WORST:
        table.caption = f"and {len(layers) - WORST} layers with less error: --html or --json"
        table.caption_justify = "left"
    return table


def _cells(found: Sensitivity, row: Row) -> list[str]:
    saved = found.saved(row)

    def shown(key: str, digits: int, scale: float = 1.0) -> str:
        value = saved[key]
        return "-" if value is None else f"{scale * value:+.{digits}f}"

    ms = saved["ms"]
    time = "~" if ms is not None and abs(ms) <= found.noise_ms else shown("ms", 3)
    return [
        row.name, f"{row.signal_to_error_db:.1f}", shown(found.base.key, 2, 100.0), shown("agreement", 2, 100.0),
        shown("map_js", 4), time,
    ]  # fmt: skip


def _told(found: Sensitivity) -> str:
    """What the table is to be read against."""
    base = found.base
    maps = "" if base.map_js is None else f", maps moved {base.map_js:.4f} of the way to another picture's"
    measured = sum(row.left_float is not None for row in found.rows)
    return (
        f"{found.engine} int8 as it is: {figure_name(base.key)} {100 * base.figure:.2f} %, agreement {100 * base.agreement:.2f} % "
        f"on {found.pictures} pictures{maps}, "
        f"{base.time_ratio * base.float_ms:.3f} ms (~: less than {found.noise_ms:.3f} ms, the noise); "
        f"{measured} of {len(found.rows)} rows measured{'' if measured == len(found.rows) else ': more --minutes, or again'}"
    )


def _page(path: Path, bundle: Bundle, found: Sequence[Sensitivity]) -> None:
    from edgeattn import __version__
    from edgeattn.deploy.names import in_attention
    from edgeattn.evaluation import report
    from edgeattn.spec import path_of

    charts = []
    for one in found:
        layers = sorted((row for row in one.rows if row.kind == "layer"), key=lambda row: row.place)
        values = [
            (row.name, row.signal_to_error_db, ATTENTION if in_attention(path_of(row.name)) else LAYER)
            for row in layers
        ]
        caption = (
            f"Lower is worse; each quantized layer's output against float's. Orange: in an attention. {one.engine}."
        )
        charts.append(
            report.bars(
                f"Signal to error, {one.engine}",
                values,
                top=TOP_DB,
                x="layers, from first to last",
                y="dB",
                caption=caption,
            )
        )
    content: dict[str, Any] = {
        "title": f"{bundle.name}: what int8 costs, and where",
        "subtitle": str(bundle.path),
        "notes": [
            LEGEND
            + ". Each row with figures is a file of its own, int8 but for this block or layer, that was measured.",
            *(_told(one) for one in found),
        ],
        "columns": ["engine", "kind", *_columns(found[0])],
        "rows": [[one.engine, row.kind, *_cells(one, row)] for one in found for row in one.rows],
        "foot": f"edgeattn {__version__}, bundle {bundle.digest()[:16]}",
    }
    report.write(path, charts=charts, **content)
