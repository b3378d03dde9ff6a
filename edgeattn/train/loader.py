"""Where training pictures come from: class folders, or anything else that gives views.

`Views` is all that the loop asks for. A view is made from a random generator seeded by (seed, epoch, index), so that it
does not depend on which worker makes it, nor on what was made before: a resumed run sees the pictures that an uninterrupted
one would have seen.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset, Sampler

from edgeattn._cv2 import cv2
from edgeattn.datasets.annotated import Annotated
from edgeattn.datasets.folder import Sample
from edgeattn.datasets.targets import Targets
from edgeattn.deploy.calibration import Calibration
from edgeattn.errors import DataError
from edgeattn.imaging import Picture, prepare, read_picture
from edgeattn.spec import InputSpec
from edgeattn.train.augment import NO_AUGMENT, Augment, shrink

CACHE_BYTES = 1_500_000_000
"""Decoded training pictures are kept in memory up to this; beyond, they are read again for every view."""


WHERE_STRIDE = 4
"""Where to look is handed on at a quarter of the input's size, which no map of ours exceeds."""

Stack = Callable[[Sequence[Any]], torch.Tensor]
Where = NDArray[np.float32]
"""Where to look, not negative, of any scale; all zero: not known."""


class View(NamedTuple):
    """A training picture as the model is to see it."""

    picture: Picture
    """(H, W, 3) BGR bytes, of the input's own size."""
    truth: Any
    """What is to be answered: of a classifier, the place of the class in the labels; see the files of `train.tasks`."""
    where: Where | None = None
    """Where to look on it, (H, W); None in data that never tells."""


def cut(pictures: int, parts: int) -> list[slice]:
    """Where each part of so many pictures lies; the same for the processes of a step and for what one process accumulates."""
    bounds = [pictures * i // parts for i in range(parts + 1)]
    return [slice(*ends) for ends in itertools.pairwise(bounds)]


class Batch(NamedTuple):
    """What a step reads."""

    pictures: torch.Tensor
    """(B, H, W, 3) RGB bytes."""
    truths: torch.Tensor
    """(B, ...): what is to be answered, as the task stacks it."""
    where: torch.Tensor
    """(B, H/4, W/4): where to look; (B, 0, 0) where the data never tells."""
    places: torch.Tensor
    """(B,) places of the views in the data: the picture's, and where views are kept, the pictures of the views before."""

    def to(self, device: torch.device) -> Batch:
        """The batch on a device."""
        return Batch(*(part.to(device) for part in self))

    def parts(self, count: int) -> list[Batch]:
        """The batch in `count` parts of consecutive pictures, as far as there are so many."""
        pictures = len(self.pictures)
        return [Batch(*(value[part] for value in self)) for part in cut(pictures, min(count, pictures))]


class Views(Protocol):
    """Training pictures."""

    def __len__(self) -> int:
        """Number of pictures in an epoch."""

    def view(self, index: int, rng: np.random.Generator) -> View | tuple[Picture, Any]:
        """A freshly augmented picture of the input's own size, (H, W, 3) BGR bytes, and its truth."""


@dataclass(frozen=True)
class TrainingData:
    """Everything that one training reads."""

    labels: tuple[str, ...]
    """Names of the classes, in the order of the logits."""
    train: Views
    """Training pictures, augmented."""
    validation: Sequence[tuple[Picture, Any]]
    """Pictures of any size with their truths, for choices."""
    test: Sequence[tuple[Picture, Any]] = ()
    """Likewise, opened once at the end."""
    calibration: Calibration | None = None
    """A set drawn from the training pictures, to quantize on."""
    notes: tuple[str, ...] = ()
    """What the user should know of the pictures: which were skipped, how they were split."""
    attributions: tuple[Mapping[str, str], ...] = ()
    """Sources and licences, where they are known."""


class PictureFiles(Sequence[tuple[Picture, Any]]):
    """Picture files with their truths, read when asked for: labelled ones, or annotated ones, which are their own truth."""

    def __init__(self, samples: Sequence[Sample | Annotated]) -> None:
        self.samples = samples

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[Picture, Any]:  # type: ignore[override]
        sample = self.samples[index]
        return read_picture(sample.path), sample.label if isinstance(sample, Sample) else sample


T = TypeVar("T", bound=tuple[NDArray[Any] | None, ...])


class Kept(Generic[T]):
    """What is read of each picture, arrays or None: kept in memory once read, all together up to `CACHE_BYTES`."""

    def __init__(self, read: Callable[[int], T]) -> None:
        """`read` reads the picture at a place."""
        self._read, self._held, self._bytes = read, dict[int, T](), 0

    def __getitem__(self, index: int) -> T:
        """What is at a place."""
        if index in self._held:
            return self._held[index]
        found = self._read(index)
        size = sum(each.nbytes for each in found if each is not None)
        if self._bytes + size <= CACHE_BYTES:
            self._held[index] = found
            self._bytes += size
        return found


class FolderViews:
    """Views of labelled picture files: kept small in memory once read, augmented anew each time."""

    def __init__(
        self, samples: Sequence[Sample], spec: InputSpec, augment: Augment, targets: Targets | None = None
    ) -> None:
        """List them; `targets` tells where to look on them."""
        self.samples, self.spec, self.augment, self.targets = samples, spec, augment, targets
        self._kept = Kept(self._read)

    def __len__(self) -> int:
        return len(self.samples)

    @property
    def is_fixed(self) -> bool:
        """Whether every view of a picture is the same, so that a teacher's answer on it can be kept."""
        return self.augment == NO_AUGMENT

    def view(self, index: int, rng: np.random.Generator) -> View:
        """As `Views.view`."""
        picture, where = self._kept[index]
        seen, where = self.augment.pair(picture, where, self.spec, rng)
        return View(seen, self.samples[index].label, where)

    def _read(self, index: int) -> tuple[Picture, Where | None]:
        path = self.samples[index].path
        picture = read_picture(path)
        where = self.targets.of(path, picture.shape) if self.targets else None
        picture = shrink(picture, self.spec)
        if where is not None:
            where = np.asarray(cv2.resize(where, picture.shape[1::-1], interpolation=cv2.INTER_AREA), np.float32)
        return picture, where


class ArrayViews:
    """Views of labelled pictures that are in memory already, augmented anew each time."""

    def __init__(
        self, pictures: NDArray[np.uint8], labels: NDArray[np.int64], spec: InputSpec, augment: Augment
    ) -> None:
        """Take pictures (N, H, W, 3) in BGR and labels (N,)."""
        self.pictures, self.labels, self.spec, self.augment = pictures, labels, spec, augment

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def is_fixed(self) -> bool:
        """As `FolderViews.is_fixed`."""
        return self.augment == NO_AUGMENT

    def view(self, index: int, rng: np.random.Generator) -> View:
        """As `Views.view`."""
        return View(self.augment(self.pictures[index], self.spec, rng), int(self.labels[index]))


class ArrayPictures(Sequence[tuple[Picture, int]]):
    """Labelled pictures that are in memory already."""

    def __init__(self, pictures: NDArray[np.uint8], labels: NDArray[np.int64]) -> None:
        self.pictures, self.labels = pictures, labels

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Picture, int]:  # type: ignore[override]
        return self.pictures[index], int(self.labels[index])


class _Epoch(Dataset[Batch]):
    def __init__(self, views: Views, seed: int, kept: int, stack: Stack) -> None:
        self.views, self.seed, self.kept, self.stack = views, seed, kept, stack

    def __len__(self) -> int:
        return len(self.views)

    def __getitems__(self, keys: Sequence[tuple[int, int]]) -> Batch:
        """The whole batch at once, so that pictures are put together once, not each made a tensor before."""
        threads = cv2.getNumThreads()
        cv2.setNumThreads(0)  # a view is too small a work to be shared; sharing it takes twice as long
        try:
            views = [self._view(epoch, index) for epoch, index in keys]
        finally:
            cv2.setNumThreads(threads)
        return Batch(
            torch.from_numpy(_rgb([view.picture for view in views])),
            self.stack([view.truth for view in views]),
            torch.from_numpy(np.stack([_small(view) for view in views])),
            torch.tensor([index + self._shown(epoch) * len(self) for epoch, index in keys]),
        )

    def _view(self, epoch: int, index: int) -> View:
        epoch = self._shown(epoch) if self.kept else epoch
        return View(*self.views.view(index, np.random.default_rng((self.seed, epoch, index))))

    def _shown(self, epoch: int) -> int:
        """Which of the kept views of a picture this epoch shows."""
        return epoch % self.kept if self.kept else 0


def _rgb(pictures: Sequence[Picture]) -> NDArray[np.uint8]:
    """Pictures of one size as (B, H, W, 3) RGB, each written to its place: stacked afterwards it takes ten times as long."""
    batch_BHW3 = np.empty((len(pictures), *pictures[0].shape), np.uint8)
    for picture, place in zip(pictures, batch_BHW3, strict=True):
        cv2.cvtColor(picture, cv2.COLOR_BGR2RGB, dst=place)
    return batch_BHW3


def _as_it_is(batch: Any) -> Any:
    return batch


def _small(view: View) -> Where:
    """Where to look, at the stride that it is handed on at."""
    if view.where is None:
        return np.zeros((0, 0), np.float32)
    size = (view.picture.shape[1] // WHERE_STRIDE, view.picture.shape[0] // WHERE_STRIDE)
    return np.asarray(cv2.resize(view.where, size, interpolation=cv2.INTER_AREA), np.float32)


class _Order(Sampler[list[tuple[int, int]]]):
    """Batches of a permutation that depends on (seed, epoch) alone; of each, the part of one process."""

    def __init__(self, count: int, seed: int, batch_size: int, part: tuple[int, int]) -> None:
        self.count, self.seed, self.batch_size, self.part, self.epoch = count, seed, batch_size, part, 0

    def __len__(self) -> int:
        return self.count // self.batch_size

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        order = np.random.default_rng((self.seed, self.epoch)).permutation(self.count)
        rank, ranks = self.part
        own = cut(self.batch_size, ranks)[rank]
        for start in range(0, len(self) * self.batch_size, self.batch_size):
            yield [(self.epoch, int(index)) for index in order[start : start + self.batch_size][own]]


class Loader:
    """Batches of an epoch in a seeded order; the last, smaller one is left out."""

    def __init__(
        self,
        views: Views,
        *,
        batch_size: int,
        seed: int,
        workers: int,
        part: tuple[int, int] = (0, 1),
        kept: int = 0,
        stack: Stack = torch.tensor,
    ) -> None:
        """Open it for one of several processes: `part` is its number and how many there are.

        With `kept`, the views of that many epochs are shown again and again. `stack` makes one tensor of the views' truths.

        Raises:
            DataError: a batch has fewer than two pictures for each.
        """
        self.batch_size = min(batch_size, len(views))
        if self.batch_size < 2 * part[1]:
            raise DataError(f"{self.batch_size} pictures a step are too few for {part[1]} processes; raise batch_size")
        self.order = _Order(len(views), seed, self.batch_size, part)
        self.batches: DataLoader[Batch] = DataLoader(
            _Epoch(views, seed, kept, stack),
            batch_sampler=self.order,
            collate_fn=_as_it_is,
            num_workers=workers,
            persistent_workers=workers > 0,
            prefetch_factor=4 if workers else None,
        )

    def __len__(self) -> int:
        return len(self.batches)

    def epoch(self, number: int) -> Iterator[Batch]:
        """Batches of one epoch."""
        self.order.epoch = number
        return iter(self.batches)


def normalise(batch_BHW3: torch.Tensor) -> torch.Tensor:
    """(B, H, W, 3) RGB bytes to (B, 3, H, W) floats (x - 128) / 128, channels last in memory."""
    return batch_BHW3.permute(0, 3, 1, 2).float().sub_(128.0).mul_(1.0 / 128.0)


def evaluation_batches(
    pictures: Sequence[tuple[Picture, Any]], spec: InputSpec, batch_size: int = 128
) -> Iterator[torch.Tensor]:
    """Batches of pictures prepared exactly as the edge does, (B, H, W, 3) RGB bytes."""
    for start in range(0, len(pictures), batch_size):
        stop = min(start + batch_size, len(pictures))
        yield torch.from_numpy(np.concatenate([prepare(pictures[i][0], spec) for i in range(start, stop)]))
