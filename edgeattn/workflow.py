"""The way from pictures to a running model, step by step: train, distil, export, quantize, choose.

The verbs `make`, `demo`, `train`, `export` and `quantize` and the scripts in tools/ call these functions.
"""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from onnx import ModelProto

from edgeattn.bundle import Bundle, sha256
from edgeattn.datasets.cifar import is_cifar
from edgeattn.datasets.folder import Sample
from edgeattn.datasets.kinds import Kind, recognise
from edgeattn.datasets.known import annotated_pictures, held_out
from edgeattn.datasets.labelled import labelled_pictures
from edgeattn.datasets.splits import kinds_of, stratified_sample
from edgeattn.deploy.calibration import FEWEST, PICTURES, Calibration, draw
from edgeattn.deploy.export import GOLDEN_PICTURES, Deployed, export, recipe_digest, to_onnx
from edgeattn.deploy.ladder import Ladder
from edgeattn.deploy.lint import OPSET
from edgeattn.deploy.quantize import Quantized, quantize
from edgeattn.deploy.recipes import Plan
from edgeattn.deploy.sensitivity import Sensitivity, sensitivity
from edgeattn.errors import DataError
from edgeattn.evaluation.significance import Gate, loss_gate
from edgeattn.imaging import prepare
from edgeattn.nn.attention import EMPTY
from edgeattn.nn.model import LITE
from edgeattn.spec import Task, to_json
from edgeattn.timing.bar import progress_bar
from edgeattn.train.augment import Augment
from edgeattn.train.loader import FolderViews, PictureFiles, TrainingData
from edgeattn.train.loop import train, views_per_second
from edgeattn.train.recipe import SIZES, Recipe, load_recipe
from edgeattn.train.runs import Trained, load_run, weights_attributions
from edgeattn.train.tasks.classify import answers

Say = Callable[[str], None]

DENSE_BATCH, DENSE_LR = 16, 0.008
"""Pictures a step of a detector or segmenter, which are larger than a classifier's; greatest learning rate, for 64."""
TEACHER = "efficientnet-lite0"
TEACHER_BELOW = 5_000
"""With fewer training pictures than this a pretrained teacher is fine-tuned on them; above, the student learns alone."""
BEHIND = 0.03
"""A student that loses more top-1 than this against its teacher is clearly behind."""
RESERVE_MINUTES = 1.0
"""Time kept for export, quantization and verification."""
DEMO_VIEWS: dict[Task, int] = {"detect": 48_000, "segment": 24_000}
"""Cards that the demo's detector and segmenter learn from."""
QAT_LR = 1 / 32
"""Learning rate of a quantization-aware fine-tuning, as a fraction of its run's: BatchNorm is gone."""
SENSITIVITY_PICTURES = 500
"""Labelled pictures that each row of a sensitivity table is measured on: many rows tell more than a tenth of a point."""
TEACHER_SHARE = 0.35
"""Share of the training time that the teacher gets."""


@dataclass(frozen=True)
class Made:
    """What `make` leaves."""

    trained: Trained
    """The student's run."""
    quantized: Quantized
    """The bundle and what was measured on it."""
    behind: Gate | None
    """How far the student is behind its teacher, on the validation pictures; None: no teacher."""
    teacher: Trained | None
    """The teacher's run."""


def task_of(data: str) -> Task:
    """The task that data asks for by its kind: boxes ask to detect, masks to segment, all else to classify.

    Raises:
        DataError: there is nothing there, or nothing of a known kind.
    """
    if data == "cards" or (":" in data and not Path(data).exists()) or is_cifar(Path(data)):
        return "classify"
    kinds: dict[Kind, Task] = {"classes": "classify", "coco": "detect", "yolo": "detect", "masks": "segment"}
    return kinds[recognise(data)]


def photo_recipe(
    photos: Path,
    *,
    task: Task = "classify",
    model: str = LITE,
    attention: str = "coord",
    imgsz: int = 0,
    teacher: str = "auto",
    seed: int = 0,
) -> Recipe:
    """The student's recipe for a folder of photos: lite has seen photos before, pico starts from the zoo's weights."""
    recipe = Recipe(
        str(photos), task=task, model=model, attention=attention, imgsz=imgsz or SIZES[task], teacher=teacher, seed=seed
    )
    if task != "classify":
        return replace(recipe, batch_size=DENSE_BATCH, lr=DENSE_LR)
    recipe = replace(recipe, mixup=0.3)
    if model == LITE:
        return replace(recipe, lr=0.002, dropout=0.2)
    fits = model == "pico" and attention != "wide"  # whose perceptrons are of another width
    return replace(recipe, start="zoo" if fits else "none")


def plan(recipe: Recipe, data: TrainingData, minutes: float, folder: Path) -> Recipe:
    """Choose the workers, and the epochs that fit into `minutes` on this machine, by timing a few steps.

    Twenty epochs at least: fewer leave a small set unlearned, and the time that takes is said by the bar.
    """
    speed, workers = views_per_second(recipe, data, folder)
    epochs = max(20, min(600, math.floor(minutes * 60 * speed / len(data.train))))
    return replace(recipe, epochs=epochs, workers=workers)


def teacher_recipe(student: Recipe) -> Recipe:
    """The recipe that fine-tunes the default teacher on the student's pictures: gentle steps, mild changes of the pictures."""
    return replace(
        student,
        model=TEACHER,
        attention="none",
        start="none",
        teacher="none",
        lr=0.0008,
        batch_size=32,
        weight_decay=0.02,
        dropout=0.2,
        label_smoothing=0.05,
        mixup=0.0,
        epochs=20,
    )


def train_with_teacher(
    recipe: Recipe, data: TrainingData, out: Path, *, minutes: float, resume: bool, progress: bool, say: Say
) -> tuple[Trained, Trained | None]:
    """Train a student within `minutes`, after its default teacher where the set is small, or after the teacher it names.

    A detector or segmenter has no default teacher.
    """
    teacher: Trained | None = None
    folder = out / "student"
    if resume and (folder / "recipe.json").is_file():
        recipe = load_recipe(folder)
    elif recipe.teacher == "auto":
        fits = recipe.task == "classify" and len(data.train) < TEACHER_BELOW
        recipe = replace(recipe, teacher=str(out / "teacher") if fits else "none")
    if recipe.teacher == str(out / "teacher"):
        plan_at = time.monotonic()
        wanted = teacher_recipe(recipe)
        if resume and (out / "teacher" / "recipe.json").is_file():
            wanted = load_recipe(out / "teacher")
        else:
            wanted = plan(wanted, data, minutes * TEACHER_SHARE, out / "teacher")
        say(f"teacher: {TEACHER}, {wanted.epochs} epochs of {len(data.train)} pictures")
        teacher = train(wanted, out / "teacher", data=data, resume=resume, progress=progress)
        minutes = max(0.5, minutes - (time.monotonic() - plan_at) / 60)
    if not (resume and (folder / "recipe.json").is_file()):
        recipe = plan(recipe, data, minutes, folder)
    say(f"student: {recipe.model} with {recipe.attention}, {recipe.epochs} epochs of {len(data.train)} pictures")
    return train(recipe, folder, data=data, resume=resume, progress=progress), teacher


def export_run(trained: Trained, data: TrainingData, path: Path, *, opset: int = OPSET, **provenance: Any) -> Bundle:
    """Export a finished run to a bundle, checked on its validation pictures (spread over the classes)."""
    if not len(data.validation):
        raise DataError(f"{trained.recipe.data} has no validation pictures to check the export on; add pictures")
    places = np.linspace(0, len(data.validation) - 1, min(GOLDEN_PICTURES, len(data.validation))).astype(int)
    recipe = to_json(trained.recipe)
    sources = [dict(a) for a in data.attributions] + weights_attributions(trained.folder)
    told = {
        "recipe_digest": recipe_digest(recipe),
        "recipe": recipe,
        "attributions": [a for i, a in enumerate(sources) if a not in sources[:i]],
        **provenance,
    }
    return export(
        trained.model,
        path,
        labels=trained.labels,
        pictures=[data.validation[int(i)][0] for i in places],
        task=trained.recipe.task,
        input=trained.recipe.input,
        mechanism=trained.recipe.attention,
        provenance=told,
        opset=opset,
    )


def qat_recipe(run: Trained, epochs: int) -> Recipe:
    """The recipe that fine-tunes a finished run with int8's rounding in the way, taught by that run itself: answers and maps."""
    if run.recipe.qat:
        raise DataError(f"{run.folder} has been fine-tuned for int8 already; name the run that it came from")
    return replace(
        run.recipe,
        qat=True,
        start=str(run.folder),
        teacher=str(run.folder),
        distill="kd" if run.recipe.attention in EMPTY else "kd+maps",
        supervise="none",
        weighting="fixed",
        fgsm=0.0,
        dropout=0.0,
        epochs=epochs,
        lr=run.recipe.lr * QAT_LR,
    )


def quantize_run(
    bundle: Bundle,
    data: TrainingData,
    folder: Path,
    calibration: Calibration | None = None,
    *,
    minutes: float = 0.0,
    tune: Callable[[], Trained] | None = None,
    portable: bool = False,
    progress: bool = False,
) -> Quantized:
    """Quantize a bundle on the set drawn from its training pictures (or the one given), whose manifest is written to `folder`.

    With `minutes`, up the ladder, whose measurements are kept in `folder`. `tune` makes a quantization-aware run: its weights
    are the ladder's last rung, or without `minutes` what the int8 files are made of. The float file stays what it is, and is
    what they are measured against.

    Raises:
        DataError: too few training pictures for a calibration set.
    """
    chosen = calibration or _calibration(data)
    tests = {sha256(sample.path) for sample in getattr(data.test, "samples", ())}
    if seen := sum(digest in tests for digest in chosen.digests):
        raise DataError(f"{seen} of the calibration pictures are in the test split; calibrate on training pictures")
    manifest = folder / "calibration.toml"
    chosen.write(manifest)
    told: dict[str, Any] = {
        "calibration": {
            "pictures": len(chosen),
            "seed": chosen.seed,
            "source": chosen.source,
            "manifest_digest": recipe_digest(dict(zip(chosen.files, chosen.digests, strict=True))),
        }
    }

    def tuned() -> ModelProto:
        assert tune
        run = tune()
        told["qat"] = {"recipe": to_json(run.recipe), "recipe_digest": recipe_digest(to_json(run.recipe))}
        return to_onnx(Deployed(run.model), bundle.spec)

    pictures = chosen.pictures()
    if not minutes:
        source = tuned() if tune else None
        return quantize(bundle, pictures, data.validation, source=source, provenance=told, portable=portable)
    return quantize(
        bundle, pictures, data.validation, provenance=told, minutes=minutes, tune=tuned if tune else None,
        memory=folder / "ladder.jsonl", portable=portable, progress=progress,
    )  # fmt: skip


def outside_data(bundle: Bundle, pictures: Path, *, skip_missing: bool = False) -> TrainingData:
    """Pictures for a bundle from elsewhere: two of seven to calibrate on (`calibration.PICTURES` at most), the rest to measure on.

    Annotated pictures that are split into parts are calibrated on by their train part, and measured on by the others.

    Raises:
        DataError: names that are no labels of the bundle, or too few pictures.
    """
    labels: tuple[str, ...] = bundle.spec.labels
    notes: tuple[str, ...] = ()
    root = pictures if pictures.is_dir() else pictures.parent
    if bundle.spec.task == "classify":
        samples = labelled_pictures(pictures, labels)
        held: dict[Path, Any] = {sample.path: sample for sample in samples}
        names: Sequence[str] = labels
    else:
        found = annotated_pictures(pictures, bundle.spec, skip_missing=skip_missing)
        held, notes = {one.path: one for one in found.pictures}, found.notes
        kinds, names = kinds_of(found)
        pairs = zip(found.pictures, kinds, strict=True)
        samples = [Sample(one.path, kind, digest=one.digest) for one, kind in pairs]
        if found.pictures != (kept := held_out(found)):
            away = {one.path for one in kept}
            held = {one.path: one for one in kept}
            samples = [sample for sample in samples if sample.path not in away]
    some = stratified_sample(samples, max(FEWEST, min(PICTURES, 2 * len(held) // 7)), seed=0)
    taken = {sample.path for sample in some}
    rest = PictureFiles([one for path, one in held.items() if path not in taken])
    return TrainingData(
        labels, FolderViews(some, bundle.spec.input, Augment()), rest, calibration=draw(some, names, root), notes=notes
    )


def _calibration(data: TrainingData) -> Calibration:
    if data.calibration is None:
        raise DataError(
            "too few training pictures to calibrate int8 on (32 at least); the float bundle works. Add pictures"
        )
    return data.calibration


def sensitivity_run(
    bundle: Bundle, data: TrainingData, folder: Path, engines: Sequence[str], *, minutes: float, progress: bool = False
) -> list[Sensitivity]:
    """What int8 costs layer by layer and block by block, for each engine, from the int8 that the bundle holds (else the default).

    Args:
        bundle: the bundle.
        data: the pictures of the run that it comes from.
        folder: that run's folder, which keeps what was measured.
        engines: whose int8.
        minutes: for all engines together.
        progress: show a bar with the time left.

    Raises:
        DataError: too few training pictures for a calibration set, or the run of the fine-tuned weights is gone.
    """
    inputs = [prepare(picture, bundle.spec.input) for picture in _calibration(data).pictures()]
    some = np.random.default_rng(0).permutation(len(data.validation))[:SENSITIVITY_PICTURES]
    labelled = [data.validation[int(i)] for i in some]
    found, began = [], time.monotonic()
    with tempfile.TemporaryDirectory() as scratch, progress_bar(progress, a_second=2) as bar:
        for i, engine in enumerate(engines):
            held = next((a.recipe for a in bundle.artefacts if (a.engine, a.precision) == (engine, "int8")), {})
            source = None
            if held.get("tuned"):
                source = to_onnx(Deployed(load_run(folder / "qat").model), bundle.spec)
            own = Path(scratch) / engine
            own.mkdir()
            ladder = Ladder(bundle, inputs, labelled, own, source, memory=folder / "ladder.jsonl")
            left = (60.0 * minutes - (time.monotonic() - began)) / (len(engines) - i)
            found.append(sensitivity(ladder, engine, Plan.of(held), left, bar))
    return found


def make(
    recipe: Recipe, data: TrainingData, out: Path, name: str, *, minutes: float, resume: bool, progress: bool, say: Say
) -> Made:
    """Train (with the default teacher where it pays), export, quantize and verify: everything in `out`."""
    trained, teacher = train_with_teacher(
        recipe, data, out, minutes=max(0.5, minutes - RESERVE_MINUTES), resume=resume, progress=progress, say=say
    )
    return finish(trained, teacher, data, out, name=name, say=say)


def finish(trained: Trained, teacher: Trained | None, data: TrainingData, out: Path, *, name: str, say: Say) -> Made:
    """From a finished run (and its teacher's) to a bundle in `out`: export, quantize, verify."""
    behind = None
    if teacher is not None:
        right = [answers(run.model, data.validation, run.recipe) == labels_of(data) for run in (teacher, trained)]
        behind = loss_gate(right[0], right[1], BEHIND)
    say("export: float.onnx for both engines, checked against torch")
    bundle = export_run(trained, data, out / f"{name}.edgeattn")
    say("quantize: int8.onnx and int8.xml, each measured through its engine")
    return Made(trained, quantize_run(bundle, data, out), behind, teacher)


def labels_of(data: TrainingData) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Labels of the validation pictures, (N,)."""
    return np.array([label for _, label in data.validation], np.int64)


def demo_recipe(seed: int, task: Task = "classify") -> Recipe:
    """The demo's student: fixed, so that every machine trains the same model from a seed."""
    if task != "classify":
        return Recipe(
            "cards", task=task, seed=seed, split_seed=seed, epochs=4, views_per_epoch=DEMO_VIEWS[task] // 4,
            batch_size=32, lr=0.016, start="zoo",
        )  # fmt: skip
    return Recipe(
        "cards",
        seed=seed,
        split_seed=seed,
        epochs=4,
        views_per_epoch=6_500,
        lr=0.012,
        label_smoothing=0.05,
        start="zoo",
    )


def demo(recipe: Recipe, data: TrainingData, out: Path, *, progress: bool, say: Say) -> Made:
    """Train on cards in two generations, then as `make`.

    The second starts from the first and learns from its softened answers too (born-again networks, Furlanello et al. 2018,
    arXiv:1805.04770). A large pretrained teacher is no help here: in the demo's minutes it learns cards worse than pico does.
    A detector or segmenter is trained once, its backbone from the zoo's weights.
    """
    if recipe.task != "classify":
        say(f"{recipe.task}: {recipe.model} with {recipe.attention}, {len(data.train) * recipe.epochs} cards")
        trained = train(recipe, out / "student", data=data, progress=progress)
        return finish(trained, None, data, out, name=f"cards-{recipe.task}", say=say)
    say(
        f"teacher: {recipe.model} with {recipe.attention}, from the zoo's weights, {len(data.train) * recipe.epochs} cards"
    )
    teacher = train(recipe, out / "teacher", data=data, progress=progress)
    born_again = replace(
        recipe,
        start=str(out / "teacher"),
        teacher=str(out / "teacher"),
        distill="kd",
        lr=0.008,
        epochs=max(1, recipe.epochs // 2),
    )
    say(f"student: starts from the teacher and learns from its answers, {len(data.train) * born_again.epochs} cards")
    trained = train(born_again, out / "student", data=data, progress=progress)
    return finish(trained, teacher, data, out, name="cards", say=say)
