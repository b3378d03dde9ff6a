"""From the data's name in a recipe to its pictures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edgeattn._cv2 import cv2
from edgeattn.datasets.cards import Cards, attributions, write_folder
from edgeattn.datasets.cifar import is_cifar, read_cifar
from edgeattn.datasets.folder import Sample, scan
from edgeattn.datasets.kinds import read_annotations
from edgeattn.datasets.splits import split, split_annotated
from edgeattn.datasets.targets import Targets, check_targets, open_targets
from edgeattn.deploy.calibration import FEWEST, PICTURES, draw
from edgeattn.errors import DataError, SpecError
from edgeattn.imaging import Picture
from edgeattn.nn.named import resolve
from edgeattn.spec import Task
from edgeattn.train.loader import ArrayPictures, ArrayViews, FolderViews, PictureFiles, TrainingData, View
from edgeattn.train.recipe import Recipe
from edgeattn.train.tasks import training_task

CARDS_VIEWS = 6_000
CARDS_HELD_OUT = 2_000
DENSE_HELD_OUT = 500
"""Cards to measure boxes and masks on, each of which tells more than a label does."""


class CardViews:
    """Cards rendered anew for every view; the renderer varies them itself."""

    def __init__(self, cards: Cards, count: int, task: Task, *, masks: bool = False) -> None:
        """With `masks` the card's own mask tells where to look."""
        self.cards, self.count, self.truth, self.masks = cards, count, training_task(task).truth, masks

    def __len__(self) -> int:
        return self.count

    def view(self, index: int, rng: np.random.Generator) -> View:
        """As `Views.view`."""
        sample = self.cards.sample(int(rng.integers(0, 2**31)))
        return View(sample.picture, self.truth(sample), sample.mask.astype(np.float32) if self.masks else None)


class CardPictures(Sequence[tuple[Picture, Any]]):
    """The first cards of a part: a fixed set of pictures with their labels, or whole cards as truths, each rendered once."""

    def __init__(self, cards: Cards, count: int, task: Task = "classify") -> None:
        self.cards, self.size, self.task = cards, count, task
        self._rendered: dict[int, tuple[Picture, Any]] = {}

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> tuple[Picture, Any]:  # type: ignore[override]
        if not 0 <= index < self.size:
            raise IndexError(index)
        if index not in self._rendered:
            sample = self.cards.sample(index)
            self._rendered[index] = sample.picture, sample.label if self.task == "classify" else sample
        return self._rendered[index]


def open_data(recipe: Recipe, scratch: Path) -> TrainingData:
    """Open the pictures that a recipe names.

    Args:
        recipe: names the data, the size of the input, the seed of the split.
        scratch: folder for pictures that are rendered, such as the calibration set of `cards`.

    Raises:
        DataError: no such folder, or pictures that cannot be trained on.
        SpecError: a function of the user's own that gives something else.
    """
    if recipe.data == "cards":
        return _cards(recipe, scratch)
    if ":" in recipe.data and not Path(recipe.data).exists():
        made = resolve("data", recipe.data, {})(recipe)
        if not isinstance(made, TrainingData):
            raise SpecError(f"data '{recipe.data}' gave a {type(made).__name__}; it must give a TrainingData")
        return made
    if recipe.task != "classify":
        return _annotated(recipe)
    if is_cifar(Path(recipe.data)):
        return _cifar(recipe, scratch)
    return _folder(recipe)


def _cards(recipe: Recipe, scratch: Path) -> TrainingData:
    seed, size = recipe.split_seed, recipe.imgsz
    root = write_folder(scratch / "calibration-cards", "train", PICTURES, seed=seed, size=size)
    listing = scan(root)
    if recipe.input.height != size:
        raise SpecError(f"cards are square; leave out height={recipe.height}")
    masks, held_out = recipe.supervise != "none", CARDS_HELD_OUT if recipe.task == "classify" else DENSE_HELD_OUT
    validation, test = (
        CardPictures(Cards(part, seed=seed, size=size), held_out, recipe.task) for part in ("validation", "test")
    )
    return TrainingData(
        Cards.map_names if recipe.task == "segment" else Cards.labels,
        CardViews(
            Cards("train", seed=seed, size=size), recipe.views_per_epoch or CARDS_VIEWS, recipe.task, masks=masks
        ),
        validation,
        test,
        draw(listing.samples, listing.labels, root, seed=seed, licence="see bundle.json"),
        attributions=tuple(attributions("train")),
    )


def _cifar(recipe: Recipe, scratch: Path) -> TrainingData:
    held = read_cifar(Path(recipe.data), seed=recipe.split_seed)
    calibration = scratch / "calibration-cifar"
    chosen = np.random.default_rng(recipe.split_seed).permutation(len(held.train.labels))[:PICTURES]
    for place in chosen:  # as files, since a calibration set is listed by hash
        folder = calibration / held.labels[held.train.labels[place]]
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{place:05d}.png").write_bytes(cv2.imencode(".png", held.train.pictures[place])[1].tobytes())
    listing = scan(calibration)
    return TrainingData(
        held.labels,
        ArrayViews(held.train.pictures, held.train.labels, recipe.input, recipe.augment),
        ArrayPictures(held.validation.pictures, held.validation.labels),
        ArrayPictures(held.test.pictures, held.test.labels),
        draw(listing.samples, listing.labels, calibration, seed=recipe.split_seed, licence="see the source"),
    )


def _folder(recipe: Recipe) -> TrainingData:
    root = Path(recipe.data)
    listing = scan(root)
    parts = split(listing, seed=recipe.split_seed)
    skipped = tuple(f"skipped {path}: {reason}" for path, reason in listing.skipped)
    few = len(parts.train) < FEWEST
    targets, told = _targets(recipe, root, [sample.path for sample in parts.train])
    return TrainingData(
        listing.labels,
        FolderViews(parts.train, recipe.input, recipe.augment, targets),
        PictureFiles(parts.validation),
        PictureFiles(parts.test),
        None if few else draw(parts.train, listing.labels, root, seed=recipe.split_seed),
        (*skipped, *parts.notes, *told),
    )


def _annotated(recipe: Recipe) -> TrainingData:
    root = Path(recipe.data)
    found = read_annotations(root, skip_missing=recipe.skip_missing)
    labels = found.map_names if recipe.task == "segment" else found.names
    if not labels:
        lacks = "masks or outlines to segment by; detect" if recipe.task == "segment" else "boxes to detect; segment"
        raise DataError(f"{root} holds no {lacks}, or give data that has them")
    if recipe.task == "segment" and len(labels) == 1:
        raise DataError(f"{root} has no class but {labels[0]}; a segmenter tells two apart at least")
    if recipe.targets != "none":
        raise SpecError("targets is for class folders; annotated pictures tell themselves where to look")
    parts = split_annotated(found, seed=recipe.split_seed)
    home = root if root.is_dir() else root.parent
    drawn = [Sample(one.path, parts.kinds[one.path], digest=one.digest) for one in parts.train]
    return TrainingData(
        labels,
        training_task(recipe.task).views(parts.train, recipe),
        PictureFiles(parts.validation),
        PictureFiles(parts.test),
        None if len(drawn) < FEWEST else draw(drawn, parts.kind_names, home, seed=recipe.split_seed),
        (*found.notes, *parts.notes),
    )


def _targets(recipe: Recipe, root: Path, pictures: Sequence[Path]) -> tuple[Targets | None, tuple[str, ...]]:
    """Where to look on the training pictures, all read once, and what the user should know of it."""
    if recipe.targets == "none":
        return None, ()
    targets = open_targets(recipe.targets, root)
    empty = check_targets(targets, pictures)
    note = f"{recipe.targets} does not tell where to look on {empty} of {len(pictures)} training pictures: they teach labels alone"
    return targets, (note,) if empty else ()
