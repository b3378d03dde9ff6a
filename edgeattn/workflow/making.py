"""From pictures to a running model in one go: train, with a teacher where it pays, export, quantize, verify."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from edgeattn.datasets.cifar import is_cifar
from edgeattn.datasets.kinds import Kind, recognise
from edgeattn.deploy.quantize import Quantized
from edgeattn.evaluation.significance import Gate, loss_gate
from edgeattn.nn.model import LITE
from edgeattn.spec import Task
from edgeattn.train.loader import TrainingData
from edgeattn.train.loop import train, views_per_second
from edgeattn.train.recipe import BATCHES, RATES, SIZES, Recipe, load_recipe
from edgeattn.train.runs import Trained
from edgeattn.train.tasks.classify import answers
from edgeattn.workflow.bundles import export_run, quantize_run

Say = Callable[[str], None]

DENSE_LITE_LR = 0.008
"""Greatest learning rate of a detector or segmenter whose backbone has learnt from photos before, for a batch of 64."""
TEACHER = "efficientnet-lite0"
TEACHER_BELOW = 5_000
"""With fewer training pictures than this a pretrained teacher is fine-tuned on them; above, the student learns alone."""
BEHIND = 0.03
"""A student that loses more top-1 than this against its teacher is clearly behind."""
RESERVE_MINUTES = 1.0
"""Time kept for export, quantization and verification."""
DEMO_VIEWS: dict[Task, int] = {"detect": 48_000, "segment": 24_000}
"""Cards that the demo's detector and segmenter learn from."""
CLASSIFIER_EPOCHS = 2
"""Of the classifier that the demo's detector starts from."""
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
    skip_missing: bool = False,
    seed: int = 0,
) -> Recipe:
    """The student's recipe for a folder of photos: lite has seen photos before, pico starts from the zoo's weights."""
    recipe = Recipe(
        str(photos), task=task, model=model, attention=attention, imgsz=imgsz or SIZES[task], teacher=teacher,
        skip_missing=skip_missing, seed=seed,
    )  # fmt: skip
    fits = model == "pico" and attention != "wide"  # whose perceptrons are of another width
    recipe = replace(recipe, start="zoo" if fits else "none")
    if task != "classify":
        return replace(recipe, batch_size=BATCHES[task], lr=DENSE_LITE_LR if model == LITE else RATES[task])
    recipe = replace(recipe, mixup=0.3)
    return replace(recipe, lr=0.002, dropout=0.2) if model == LITE else recipe


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
        recipe = Recipe(
            "cards", task=task, seed=seed, split_seed=seed, epochs=4, views_per_epoch=DEMO_VIEWS[task] // 4,
            batch_size=32, lr=0.016, start="zoo",
        )  # fmt: skip
        return replace(recipe, lr=0.012, warmup=0.4) if task == "detect" else recipe
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
    A segmenter is trained once, its backbone from the zoo's weights. A detector that starts so finds cards and does not tell
    them apart (mAP50 2 % after 20,000 cards); from a classifier of cards, with a long warm-up, 94 %.
    """
    if recipe.task != "classify":
        if recipe.task == "detect":
            first = replace(demo_recipe(recipe.seed), epochs=CLASSIFIER_EPOCHS)
            say(f"classifier: {first.model} with {first.attention}, which the detector starts from")
            train(first, out / "classifier", progress=progress)
            recipe = replace(recipe, start=str(out / "classifier"))
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
