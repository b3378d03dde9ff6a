"""`edgeattn quantize`: int8 for both engines, measured and gated on the saved files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from edgeattn.cli.common import SkipMissing, load_own, need_training, say, write_json
from edgeattn.cli.prices import print_whole
from edgeattn.cli.verify import figure_name
from edgeattn.errors import DataError

if TYPE_CHECKING:
    from edgeattn.deploy.ladder import Step

NAMED = 2
"""Blocks that a row of the ladder names."""


def quantize(
    bundle: Annotated[str, typer.Argument(help="A bundle's folder.")],
    *,
    run: Annotated[
        Path | None, typer.Option(help="The run that it was exported from: names the pictures and their split.")
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(
            help="For a bundle from elsewhere: class folders or a .csv of file and index, boxes, or masks; two of seven "
            "calibrate, or those of a train part."
        ),
    ] = None,
    skip_missing: SkipMissing = False,
    calibration: Annotated[
        Path | None, typer.Option(help="Manifest of a calibration set; default: drawn from the run's training split.")
    ] = None,
    minutes: Annotated[
        float,
        typer.Option(
            min=0.0,
            help="Time for the ladder: what of each attention block stays in float is found by measuring; fine-tuning that was "
            "begun is finished beyond it. 0: the default recipe.",
        ),
    ] = 5.0,
    qat: Annotated[
        int,
        typer.Option(
            min=0,
            help="Epochs of fine-tuning with int8's rounding in the way, taught by the run itself, into RUN/qat: the ladder's "
            "last rung; with --minutes 0 it is done in any case.",
        ),
    ] = 0,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with that fine-tuning, or take it as it is.")] = False,
    portable: Annotated[
        bool,
        typer.Option(
            "--portable",
            help="Weights of seven bits, for boxes without VNNI; default: eight where this processor has it.",
        ),
    ] = False,
    json: Annotated[Path | None, typer.Option(help="Write the report there.")] = None,
) -> None:
    """Quantize a bundle to int8 for both engines; accuracy, attention and speed are measured on the saved files."""
    need_training("edgeattn quantize")
    from edgeattn.cli.verify import show, verdict_exit
    from edgeattn.deploy.calibration import read
    from edgeattn.train.loop import train
    from edgeattn.train.recipe import load_recipe
    from edgeattn.train.runs import load_run
    from edgeattn.train.sources import open_data
    from edgeattn.workflow import outside_data, qat_recipe, quantize_run

    if (run is None) == (data is None):
        raise DataError(
            "quantize needs pictures: give --run RUN (what it was exported from), or --data for another bundle"
        )
    if data and qat:
        raise DataError("--qat fine-tunes the run that a bundle comes from; give --run in place of --data")
    loaded = load_own(bundle)
    chosen = read(calibration) if calibration else None
    tune = None
    if data:
        held, folder = outside_data(loaded, data, skip_missing=skip_missing), loaded.path.with_suffix(".int8")
    else:
        assert run
        recipe, folder = qat_recipe(load_run(run), qat) if qat else load_recipe(run), run
        held = open_data(recipe, run)
        tune = (lambda: train(recipe, folder / "qat", data=held, resume=resume)) if qat else None
    made = quantize_run(loaded, held, folder, chosen, minutes=minutes, portable=portable, progress=True, tune=tune)
    for note in held.notes if data else ():
        say(note)
    if chosen is None:
        say(f"calibration set: {folder / 'calibration.toml'}")
    if made.steps:
        print_whole(ladder_table(made.steps))
    show(made.report)
    for note in made.notes:
        say(note)
    told = {"verdict": made.verdict, "notes": made.notes, "ladder": [step.json() for step in made.steps]}
    write_json(json, made.report.json() | told)
    if made.verdict == "failed":
        pictures = f"--data {data}" if data else f"--run {run} --qat {qat or 4}"
        say(f"next:  edgeattn quantize {made.bundle.path} {pictures} --minutes {max(10.0, 2 * minutes):g}")
    else:
        say(f"next:  edgeattn run {made.bundle.path} --source 0")
    verdict_exit(made.verdict)


def ladder_table(steps: Sequence[Step]) -> Table:
    """What was tried on the ladder: a row each, what was kept in bold."""
    table = Table(title="the ladder", title_justify="left", box=None, pad_edge=False)
    for name in ("engine", "rung", "new in"):
        table.add_column(name, no_wrap=True)
    for name in (figure_name(steps[0].key), "maps, rank", "of bound", "time"):
        table.add_column(name, justify="right", no_wrap=True)
    last = {step.engine: step for step in steps if step.kept}
    for step in steps:
        blocks = ", ".join(step.blocks[:NAMED]) or "all blocks"
        if len(step.blocks) > NAMED:
            blocks += f" and {len(step.blocks) - NAMED} more"
        maps = "" if step.map_js is None else f"{step.map_js:.3f}, {step.map_rank:.2f}"
        figures = [f"{100 * step.figure:.2f} %", maps, f"{step.excess:.2f}", f"{step.time_ratio:.2f}"]
        style = "bold green" if step is last.get(step.engine) else "" if step.kept else "dim"
        table.add_row(
            step.engine, step.rung, blocks, *(["", "", "failed", ""] if step.failure else figures), style=style
        )
    table.caption = (
        "green: taken; dim: tried, not kept. Of bound: the worst gate, 1 is just inside. Time: int8 over float"
    )
    return table
