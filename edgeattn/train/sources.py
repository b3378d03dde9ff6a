"""From the data's name in a recipe to its pictures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from edgeattn.datasets.cards import Cards
from edgeattn.datasets.folder import scan
from edgeattn.datasets.splits import Split, split
from edgeattn.errors import SpecError
from edgeattn.imaging import Picture
from edgeattn.nn.named import resolve
from edgeattn.train.loader import FolderViews, PictureFiles, TrainingData
from edgeattn.train.recipe import Recipe

CARDS_VIEWS = 6_000
CARDS_VALIDATION = 1_000


class CardViews:
    """Cards rendered anew for every view; the renderer varies them itself."""

    def __init__(self, cards: Cards, count: int) -> None:
        self.cards, self.count = cards, count

    def __len__(self) -> int:
        return self.count

    def view(self, index: int, rng: np.random.Generator) -> tuple[Picture, int]:
        """As `Views.view`."""
        sample = self.cards.sample(int(rng.integers(0, 2**31)))
        return sample.picture, sample.label


class CardPictures(Sequence[tuple[Picture, int]]):
    """The first cards of a part: a fixed set of labelled pictures."""

    def __init__(self, cards: Cards, count: int) -> None:
        self.cards, self.count = cards, count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[Picture, int]:  # type: ignore[override]
        if not 0 <= index < self.count:
            raise IndexError(index)
        sample = self.cards.sample(index)
        return sample.picture, sample.label


def open_data(recipe: Recipe) -> TrainingData:
    """Open the pictures that a recipe names.

    Raises:
        DataError: no such folder, or pictures that cannot be trained on.
        SpecError: a function of the user's own that gives something else.
    """
    if recipe.data == "cards":
        train = Cards("train", seed=recipe.split_seed, size=recipe.imgsz)
        validation = Cards("validation", seed=recipe.split_seed, size=recipe.imgsz)
        views = CardViews(train, recipe.views_per_epoch or CARDS_VIEWS)
        return TrainingData(train.labels, views, CardPictures(validation, CARDS_VALIDATION))
    if ":" in recipe.data and not Path(recipe.data).exists():
        made = resolve("data", recipe.data, {})(recipe)
        if not isinstance(made, TrainingData):
            raise SpecError(f"data '{recipe.data}' gave a {type(made).__name__}; it must give a TrainingData")
        return made
    listing, parts = split_folder(recipe)
    return TrainingData(listing, FolderViews(parts.train, recipe.input, recipe.augment), PictureFiles(parts.validation))


def split_folder(recipe: Recipe) -> tuple[tuple[str, ...], Split]:
    """Labels and the three parts of the folder that a recipe names, the same each time."""
    listing = scan(Path(recipe.data))
    return listing.labels, split(listing, seed=recipe.split_seed)
