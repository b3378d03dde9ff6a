"""From the data's name in a recipe to its pictures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from edgeattn._cv2 import cv2
from edgeattn.datasets.cards import Cards, attributions, write_folder
from edgeattn.datasets.cifar import is_cifar, read_cifar
from edgeattn.datasets.folder import scan
from edgeattn.datasets.splits import split
from edgeattn.datasets.targets import Targets, check_targets, open_targets
from edgeattn.deploy.calibration import FEWEST, PICTURES, draw
from edgeattn.errors import SpecError
from edgeattn.imaging import Picture
from edgeattn.nn.named import resolve
from edgeattn.train.loader import ArrayPictures, ArrayViews, FolderViews, PictureFiles, TrainingData, View
from edgeattn.train.recipe import Recipe

CARDS_VIEWS = 6_000
CARDS_HELD_OUT = 2_000


class CardViews:
    """Cards rendered anew for every view; the renderer varies them itself."""

    def __init__(self, cards: Cards, count: int, *, masks: bool = False) -> None:
        """With `masks` the card's own mask tells where to look."""
        self.cards, self.count, self.masks = cards, count, masks

    def __len__(self) -> int:
        return self.count

    def view(self, index: int, rng: np.random.Generator) -> View:
        """As `Views.view`."""
        sample = self.cards.sample(int(rng.integers(0, 2**31)))
        return View(sample.picture, sample.label, sample.mask.astype(np.float32) if self.masks else None)


class CardPictures(Sequence[tuple[Picture, int]]):
    """The first cards of a part: a fixed set of labelled pictures, each rendered once."""

    def __init__(self, cards: Cards, count: int) -> None:
        self.cards, self.size = cards, count
        self._rendered: dict[int, tuple[Picture, int]] = {}

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> tuple[Picture, int]:  # type: ignore[override]
        if not 0 <= index < self.size:
            raise IndexError(index)
        if index not in self._rendered:
            sample = self.cards.sample(index)
            self._rendered[index] = sample.picture, sample.label
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
    if is_cifar(Path(recipe.data)):
        return _cifar(recipe, scratch)
    return _folder(recipe)


def _cards(recipe: Recipe, scratch: Path) -> TrainingData:
    seed, size = recipe.split_seed, recipe.imgsz
    root = write_folder(scratch / "calibration-cards", "train", PICTURES, seed=seed, size=size)
    listing = scan(root)
    return TrainingData(
        Cards.labels,
        CardViews(
            Cards("train", seed=seed, size=size),
            recipe.views_per_epoch or CARDS_VIEWS,
            masks=recipe.supervise != "none",
        ),
        CardPictures(Cards("validation", seed=seed, size=size), CARDS_HELD_OUT),
        CardPictures(Cards("test", seed=seed, size=size), CARDS_HELD_OUT),
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


def _targets(recipe: Recipe, root: Path, pictures: Sequence[Path]) -> tuple[Targets | None, tuple[str, ...]]:
    """Where to look on the training pictures, all read once, and what the user should know of it."""
    if recipe.targets == "none":
        return None, ()
    targets = open_targets(recipe.targets, root)
    empty = check_targets(targets, pictures)
    note = f"{recipe.targets} does not tell where to look on {empty} of {len(pictures)} training pictures: they teach labels alone"
    return targets, (note,) if empty else ()
