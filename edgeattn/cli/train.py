"""`edgeattn train`: one training by a recipe, with a teacher where one is named."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from edgeattn.cli.common import SIZE, TASK, SkipMissing, as_task, console, need_training, say, write_json


def train(
    data: Annotated[
        str,
        typer.Argument(
            help="Class folders, CIFAR's binaries, COCO's JSON, YOLO's labels, masks, `cards`, or package.module:function."
        ),
    ],
    *,
    out: Annotated[Path, typer.Option(help="Folder of the run.")],
    task: Annotated[str, typer.Option(help=TASK)] = "",
    model: Annotated[
        str,
        typer.Option(
            help="pico, nano, tiny, small, lite, resnet20, efficientnet-lite0, timm:NAME, package.module:function."
        ),
    ] = "pico",
    attention: Annotated[str, typer.Option(help="A name of `edgeattn attentions`, or package.module:Class.")] = "coord",
    imgsz: Annotated[int, typer.Option(help=SIZE)] = 0,
    teacher: Annotated[
        str,
        typer.Option(
            help="A run's folder, a bundle, an .onnx file, timm:NAME@FILE, package.module:function; several by commas."
        ),
    ] = "none",
    distill: Annotated[
        str, typer.Option(help="What the teacher teaches by: kd, dkd, dist, rkd, at, cwd, mgd, maps; joined by +.")
    ] = "kd",
    supervise: Annotated[
        str, typer.Option(help="Teach attention where to look: kl, ce, bce or cosine against --targets.")
    ] = "none",
    targets: Annotated[
        str, typer.Option(help="Where to look: a folder of masks or gaze maps that mirrors DATA, or boxes.json.")
    ] = "none",
    skip_missing: SkipMissing = False,
    epochs: Annotated[int, typer.Option(help="Times that every picture is seen.")] = 40,
    seed: Annotated[int, typer.Option(help="Seed of weights, order and augmentation.")] = 0,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the run's last checkpoint.")] = False,
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="Override a field of the recipe: field=value.")
    ] = None,
    json: Annotated[Path | None, typer.Option(help="Write the report there.")] = None,
) -> None:
    """Train a model; the run's folder keeps the recipe, the metrics, the weights and the last checkpoint."""
    need_training("edgeattn train")
    from edgeattn.cli.verify import figures_in_words
    from edgeattn.spec import to_json
    from edgeattn.train.loop import told
    from edgeattn.train.loop import train as fit
    from edgeattn.train.recipe import BATCHES, RATES, SIZES, Recipe, override
    from edgeattn.train.runs import check
    from edgeattn.train.sources import open_data
    from edgeattn.workflow import task_of

    chosen = as_task(task) or task_of(data)
    recipe = override(
        Recipe(
            data,
            task=chosen,
            model=model,
            attention=attention,
            imgsz=imgsz or SIZES[chosen],
            teacher=teacher,
            distill=distill,
            supervise=supervise,
            targets=targets,
            skip_missing=skip_missing,
            epochs=epochs,
            batch_size=BATCHES[chosen],
            lr=RATES[chosen],
            seed=seed,
        ),
        set_ or [],
    )
    check(recipe)
    pictures = open_data(recipe, out)
    for note in pictures.notes:
        say(note)
    trained = fit(recipe, out, data=pictures, resume=resume)
    found = {name.removeprefix("validation_"): value for name, value in trained.metrics.items()}
    words = [f"{told(recipe, trained.metrics)} on {len(pictures.validation)} pictures", *figures_in_words(found)]
    say("; ".join(words))
    write_json(
        json, {"schema": "edgeattn.train/1", "run": str(out), "recipe": to_json(recipe), "metrics": trained.metrics}
    )
    console.print(f"next:  edgeattn export {out}", markup=False)
