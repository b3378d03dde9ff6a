"""`edgeattn make`: pictures in, running model out."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edgeattn.cli.common import SIZE, TASK, SkipMissing, as_task, console, need_training, say, write_json
from edgeattn.cli.lint import say_broken

if TYPE_CHECKING:
    from edgeattn.workflow import Made


def make(
    photos: Annotated[
        Path,
        typer.Argument(
            help="Class folders (PHOTOS/cup/1.jpg, PHOTOS/plate/2.jpg, ...), or pictures with boxes (COCO's JSON, YOLO's "
            "labels) or masks."
        ),
    ],
    *,
    task: Annotated[str, typer.Option(help=TASK)] = "",
    out: Annotated[
        Path | None, typer.Option(help="Where runs and the bundle go; default: runs/NAME of the folder.")
    ] = None,
    model: Annotated[
        str,
        typer.Option(help="lite (starts from ImageNet weights), pico, nano, tiny, small, or package.module:function."),
    ] = "lite",
    attention: Annotated[str, typer.Option(help="A name of `edgeattn attentions`, or package.module:Class.")] = "coord",
    imgsz: Annotated[int, typer.Option(help=SIZE)] = 0,
    teacher: Annotated[str, typer.Option(help="auto, none, or the folder of a teacher's run.")] = "auto",
    skip_missing: SkipMissing = False,
    minutes: Annotated[float, typer.Option(min=1.0, help="Time to plan for, teacher included.")] = 8.0,
    seed: Annotated[int, typer.Option(help="Seed of weights, order and augmentation.")] = 0,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with an interrupted run in --out.")] = False,
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="Override a field of the recipe: field=value.")
    ] = None,
    json: Annotated[Path | None, typer.Option(help="Write the report there.")] = None,
) -> None:
    """Train, distil, export, quantize and verify a model on your own pictures, and print the line that runs it."""
    need_training("edgeattn make")
    from edgeattn import workflow
    from edgeattn.tasks import FIGURES
    from edgeattn.train.recipe import override
    from edgeattn.train.runs import check
    from edgeattn.train.sources import open_data

    name = photos.resolve().name
    out = out or Path("runs") / name
    recipe = override(
        workflow.photo_recipe(
            photos, task=as_task(task) or workflow.task_of(str(photos)), model=model, attention=attention, imgsz=imgsz,
            teacher=teacher, skip_missing=skip_missing, seed=seed,
        ),
        set_ or [],
    )  # fmt: skip
    check(recipe)
    data = open_data(recipe, out)
    for note in data.notes:
        say(note)
    counts = f"{len(data.train)} pictures to train, {len(data.validation)} to choose, {len(data.test)} to test"
    say(f"{len(data.labels)} classes; {counts}")
    try:
        made = workflow.make(recipe, data, out, name, minutes=minutes, resume=resume, progress=True, say=say)
    except KeyboardInterrupt:
        say(f"go on where it stopped with:  edgeattn make {photos} --out {out} --resume")
        raise
    judged = FIGURES[recipe.task]
    on_test = test_figure(made, data.test)
    write_json(json, summary(made) | {"schema": "edgeattn.make/1", f"test_{judged.key}": on_test})
    if on_test is not None:
        say(f"test (opened once, {len(data.test)} pictures): {judged.name} {on_test:.1%} in float")
    offer(made, out, name, data)
    console.print(f"\nrun it:   edgeattn run {made.quantized.bundle.path} --source 0", markup=False)
    console.print(f"time it:  edgeattn profile {made.quantized.bundle.path}", markup=False)


def summary(made: Made) -> dict[str, Any]:
    """What a report says of a made bundle; on screen a table of its artefacts, and what NPU compilers would not like."""
    from edgeattn.cli.verify import show
    from edgeattn.tasks import FIGURES

    show(made.quantized.report)
    for note in made.quantized.notes:
        say(note)
    say_broken(made.quantized.bundle)
    judged = FIGURES[made.trained.recipe.task].key
    return {
        "bundle": str(made.quantized.bundle.path),
        "run": str(made.trained.folder),
        f"validation_{judged}": made.trained.metrics[f"validation_{judged}"],
        f"teacher_{judged}": made.teacher.metrics[f"validation_{judged}"] if made.teacher else None,
        "results": made.quantized.report.json()["results"],
    }


def test_figure(made: Made, pictures: Any) -> float | None:
    """The figure that the student is judged by, on the test pictures; None: there are none."""
    from edgeattn.train.loop import figure

    trained = made.trained
    return figure(trained.model, pictures, trained.recipe, trained.labels) if len(pictures) else None


def offer(made: Made, out: Path, name: str, data: Any) -> None:
    """Say how the student stands to its teacher; where it is clearly behind, quantize the teacher too."""
    from edgeattn import workflow

    if made.behind is None or made.teacher is None:
        return
    student, teacher = made.trained.metrics["validation_top1"], made.teacher.metrics["validation_top1"]
    line = f"validation top-1: student {student:.1%}, teacher {teacher:.1%} ({made.behind.n} pictures)"
    if made.behind.verdict != "failed" and teacher - student <= workflow.BEHIND:
        say(line)
        return
    sure = "is clearly behind" if made.behind.verdict == "failed" else "may be behind (too few pictures to tell)"
    say(f"{line}: the student {sure}; the teacher is quantized too, as a slower bundle")
    exported = workflow.export_run(made.teacher, data, out / f"{name}-teacher.edgeattn")
    bundle = workflow.quantize_run(exported, data, out / "teacher").bundle
    console.print(f"run the teacher:  edgeattn run {bundle.path} --source 0", markup=False)
