"""`edgeattn import`: somebody else's model becomes a bundle."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from edgeattn.cli.common import SkipMissing, as_task, console, say, write_json
from edgeattn.cli.lint import say_broken
from edgeattn.cli.verify import Pictures, show, verdict_exit
from edgeattn.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from edgeattn.deploy.importing import Tried
    from edgeattn.spec import Spec


CHANCE = 1.5
"""Times the right answers of guessing below which something is wrong."""


def import_(
    model: Annotated[Path, typer.Argument(help="A model's .onnx, OpenVINO .xml, or the folder that holds that.")],
    *,
    data: Annotated[
        Path,
        typer.Option(
            help="Class folders named after labels, or a .csv of file and index (or label). For a detector or segmenter any "
            "pictures; with boxes or masks it is measured on them."
        ),
    ],
    labels: Annotated[
        str | None,
        typer.Option(help="Names of the classes in the model's order: a file, a line each, or joined by commas."),
    ] = None,
    normalise: Annotated[
        str,
        typer.Option(help="imagenet, 0..1, -1..1, 0..255; default: what the file says, else found on the pictures."),
    ] = "",
    channels: Annotated[str, typer.Option(help="rgb or bgr; default: likewise.")] = "",
    imgsz: Annotated[int | None, typer.Option(help="Side of the input, where the file leaves it open.")] = None,
    crop: Annotated[float, typer.Option(help="Central crop, as in 0.875 for 224 of 256.")] = 1.0,
    task: Annotated[
        str, typer.Option(help="classify, detect or segment; default: what the file says, else classify.")
    ] = "",
    skip_missing: SkipMissing = False,
    out: Annotated[Path | None, typer.Option(help="The bundle; default: MODEL.edgeattn beside it.")] = None,
    json: Annotated[Path | None, typer.Option(help="Write the report there.")] = None,
) -> None:
    """Make a bundle of an ONNX or OpenVINO classifier, detector or segmenter from elsewhere, checked through both engines.

    How it wants its pictures is read from the file (ultralytics, Model API), or found by trying what gives most right answers.
    """
    import numpy as np

    from edgeattn.datasets.folder import natural
    from edgeattn.datasets.labelled import class_folders, labelled_pictures, read_labels
    from edgeattn.deploy.foreign import metadata, model_file, prototypes_of, read_graph
    from edgeattn.deploy.importing import TRIED, import_model
    from edgeattn.deploy.verify import verify
    from edgeattn.imaging import list_pictures, read_picture
    from edgeattn.spec import InputSpec, Spec, to_json

    graph = read_graph(model_file(model))
    told = metadata(graph.told)
    names = read_labels(labels) if labels else told.labels
    measured: Pictures | None = None
    does = as_task(task) or told.task or "classify"
    classifies = does == "classify"
    if not names and data.is_dir() and classifies:
        names = tuple(sorted((folder.name for folder in class_folders(data)), key=natural))
    if not names:
        raise DataError(f"{model} does not name its classes; give them with --labels (a file, a line each)")
    if not labels:
        say(f"labels: {', '.join(names[:8])}{', ...' if len(names) > 8 else ''}")
    if classifies:
        samples = [(sample.path, sample.label) for sample in labelled_pictures(data, names)]
    else:
        prototypes = prototypes_of(graph) if does == "detect" else ""
        spec = Spec(does, InputSpec(32, 32), tuple(names), prototypes=prototypes)  # what of it matters to pictures
        measured = _annotated(data, spec, skip_missing=skip_missing)
        samples = [(path, -1) for path in (measured.paths if measured else list_pictures(data))]
        if not samples:
            raise DataError(f"{data} holds no pictures; a model is checked on a folder of some: --data DIR")
    chosen = [samples[i] for i in np.random.default_rng(0).permutation(len(samples))[:TRIED]]
    pictures = [(read_picture(path), label) for path, label in chosen]
    found = import_model(
        model, out or (model if model.is_dir() else model.with_suffix("")), pictures, labels=names,
        normalisation=normalise, channels=channels, imgsz=imgsz, crop=crop, task=task,
    )  # fmt: skip
    if found.tried:
        console.print(_table(found.tried, len(pictures)))
        if found.tried[0].top1 < CHANCE / len(found.bundle.spec.labels):
            say("hardly better than guessing: are the labels in the order of the model's outputs?")
    for engine, why in (found.failures or {}).items():
        say(f"{engine} cannot run it: {why}")
    for artefact in found.bundle.artefacts:
        gate = artefact.gates["parity"]
        say(
            f"{artefact.engine}: differs from {gate['against']} by {gate['difference']:.1e} of the range, {gate['verdict']}"
        )
    if "onnxruntime" not in (found.failures or {}):  # an IR has no ONNX file to look at
        say_broken(found.bundle)
    report = None
    if measured:
        report = verify(found.bundle, iter(measured))
        show(report)
        for note in measured.notes:
            say(note)
    write_json(
        json,
        {"schema": "edgeattn.import/1", "bundle": str(found.bundle.path), "tried": to_json(found.tried),
         "failures": dict(found.failures or {}), "spec": to_json(found.bundle.spec),
         "measured": report.json() if report else None},
    )  # fmt: skip
    path = found.bundle.path
    labelled = classifies or measured
    say(f"next:  edgeattn {f'quantize {path} --data {data}' if labelled else f'run {path} --source 0'}")
    if report:
        verdict_exit(report.verdict)


def _annotated(data: Path, spec: Spec, *, skip_missing: bool) -> Pictures | None:
    """The pictures with their boxes or masks; None where the folder holds pictures alone, or in class folders."""
    from edgeattn.datasets.kinds import has_no_annotations, recognise

    if has_no_annotations(data, spec.task) or recognise(data) == "classes":
        return None
    return Pictures(data, spec, skip_missing=skip_missing)


def _table(tried: Sequence[Tried], pictures: int) -> Table:
    table = Table("normalisation", "channels", "top-1 %", box=None, pad_edge=False, header_style="bold")
    for i, one in enumerate(tried):
        table.add_row(one.normalisation, one.channels, f"{100 * one.top1:.1f}", style="bold green" if i == 0 else "dim")
    table.caption = f"tried on {pictures} pictures; the first is taken"
    table.caption_justify = "left"
    return table
