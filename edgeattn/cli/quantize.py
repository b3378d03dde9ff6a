"""`edgeattn quantize`: int8 for both engines, measured and gated on the saved files."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from edgeattn.cli.common import console, need_training, say, write_json


def quantize(
    bundle: Annotated[str, typer.Argument(help="A bundle's folder.")],
    *,
    run: Annotated[Path, typer.Option(help="The run that it was exported from: names the pictures and their split.")],
    calibration: Annotated[
        Path | None, typer.Option(help="Manifest of a calibration set; default: drawn from the run's training split.")
    ] = None,
    qat: Annotated[
        int,
        typer.Option(
            help="First fine-tune for so many epochs with int8's rounding in the way, taught by the run itself, into RUN/qat."
        ),
    ] = 0,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with that fine-tuning, or take it as it is.")] = False,
    json: Annotated[Path | None, typer.Option(help="Write the report there.")] = None,
) -> None:
    """Quantize a bundle to int8 for both engines; accuracy, attention and speed are measured on the saved files."""
    need_training("edgeattn quantize")
    from edgeattn.bundle import load
    from edgeattn.cli.verify import table, verdict_exit
    from edgeattn.deploy.calibration import read
    from edgeattn.train.loop import train
    from edgeattn.train.recipe import load_recipe
    from edgeattn.train.runs import load_run
    from edgeattn.train.sources import open_data
    from edgeattn.workflow import qat_recipe, quantize_run

    loaded = load(bundle)
    chosen = read(calibration) if calibration else None
    recipe = qat_recipe(load_run(run), qat) if qat else load_recipe(run)
    data = open_data(recipe, run)
    tuned = train(recipe, run / "qat", data=data, resume=resume) if qat else None
    made = quantize_run(loaded, data, run, chosen, tuned)
    if chosen is None:
        say(f"calibration set: {run / 'calibration.toml'}")
    console.print(table(made.report))
    write_json(json, made.report.json())
    console.print(f"next:  edgeattn run {made.bundle.path} --source 0", markup=False)
    verdict_exit(made.report)
