"""Where training pictures come from: class folders, or anything else that gives views.

`Views` is all that the loop asks for. A view is made from a random generator seeded by (seed, epoch, index), so that it
does not depend on which worker makes it, nor on what was made before: a resumed run sees the pictures that an uninterrupted
one would have seen.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler, get_worker_info

from edgeattn._cv2 import cv2
from edgeattn.datasets.folder import Sample
from edgeattn.deploy.calibration import Calibration
from edgeattn.imaging import Picture, prepare, read_picture
from edgeattn.spec import InputSpec
from edgeattn.train.augment import Augment, shrink

CACHE_BYTES = 1_500_000_000
"""Decoded training pictures are kept in memory up to this; beyond, they are read again for every view."""


class Views(Protocol):
    """Training pictures."""

    def __len__(self) -> int:
        """Number of pictures in an epoch."""

    def view(self, index: int, rng: np.random.Generator) -> tuple[Picture, int]:
        """A freshly augmented picture of the input's own size, (H, W, 3) BGR bytes, and its label."""


@dataclass(frozen=True)
class TrainingData:
    """Everything that one training reads."""

    labels: tuple[str, ...]
    """Names of the classes, in the order of the logits."""
    train: Views
    """Training pictures, augmented."""
    validation: Sequence[tuple[Picture, int]]
    """Pictures of any size with their labels, for choices."""
    test: Sequence[tuple[Picture, int]] = ()
    """Likewise, opened once at the end."""
    calibration: Calibration | None = None
    """A set drawn from the training pictures, to quantize on."""
    notes: tuple[str, ...] = ()
    """What the user should know of the pictures: which were skipped, how they were split."""
    attributions: tuple[Mapping[str, str], ...] = ()
    """Sources and licences, where they are known."""


class PictureFiles(Sequence[tuple[Picture, int]]):
    """Labelled picture files, read when asked for."""

    def __init__(self, samples: Sequence[Sample]) -> None:
        self.samples = samples

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[Picture, int]:  # type: ignore[override]
        return read_picture(self.samples[index].path), self.samples[index].label


class FolderViews:
    """Views of labelled picture files: kept small in memory once read, augmented anew each time."""

    def __init__(self, samples: Sequence[Sample], spec: InputSpec, augment: Augment) -> None:
        self.samples, self.spec, self.augment = samples, spec, augment
        self._cache: dict[int, Picture] = {}
        self._cached_bytes = 0

    def __len__(self) -> int:
        return len(self.samples)

    def view(self, index: int, rng: np.random.Generator) -> tuple[Picture, int]:
        """As `Views.view`."""
        return self.augment(self._read(index), self.spec, rng), self.samples[index].label

    def _read(self, index: int) -> Picture:
        if index in self._cache:
            return self._cache[index]
        picture = shrink(read_picture(self.samples[index].path), self.spec)
        if self._cached_bytes + picture.nbytes <= CACHE_BYTES:
            self._cache[index] = picture
            self._cached_bytes += picture.nbytes
        return picture


class _Epoch(Dataset[tuple[torch.Tensor, int]]):
    def __init__(self, views: Views, seed: int) -> None:
        self.views, self.seed = views, seed

    def __len__(self) -> int:
        return len(self.views)

    def __getitem__(self, key: tuple[int, int]) -> tuple[torch.Tensor, int]:
        if get_worker_info() is not None:
            cv2.setNumThreads(0)
        epoch, index = key
        picture, label = self.views.view(index, np.random.default_rng((self.seed, epoch, index)))
        return torch.from_numpy(np.ascontiguousarray(picture[..., ::-1])), label


class _Order(Sampler[tuple[int, int]]):
    """A permutation that depends on (seed, epoch) alone."""

    def __init__(self, count: int, seed: int) -> None:
        self.count, self.seed, self.epoch = count, seed, 0

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[tuple[int, int]]:
        order = np.random.default_rng((self.seed, self.epoch)).permutation(self.count)
        return ((self.epoch, int(index)) for index in order)


class Loader:
    """Batches of (B, H, W, 3) RGB bytes and (B,) labels; the last, smaller batch of an epoch is left out."""

    def __init__(self, views: Views, *, batch_size: int, seed: int, workers: int) -> None:
        self.order = _Order(len(views), seed)
        self.batch_size = min(batch_size, len(views))
        self.batches: DataLoader[tuple[torch.Tensor, int]] = DataLoader(
            _Epoch(views, seed),
            batch_size=self.batch_size,
            sampler=self.order,
            drop_last=True,
            num_workers=workers,
            persistent_workers=workers > 0,
            prefetch_factor=4 if workers else None,
        )

    def __len__(self) -> int:
        return len(self.batches)

    def epoch(self, number: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Batches of one epoch."""
        self.order.epoch = number
        return iter(self.batches)


def normalise(batch_BHW3: torch.Tensor) -> torch.Tensor:
    """(B, H, W, 3) RGB bytes to (B, 3, H, W) floats (x - 128) / 128, channels last in memory."""
    return batch_BHW3.permute(0, 3, 1, 2).float().sub_(128.0).mul_(1.0 / 128.0)


def evaluation_batches(
    pictures: Sequence[tuple[Picture, int]], spec: InputSpec, batch_size: int = 128
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Batches of pictures prepared exactly as the edge does, (B, H, W, 3) RGB bytes, and their labels (B,)."""
    for start in range(0, len(pictures), batch_size):
        chosen = [pictures[i] for i in range(start, min(start + batch_size, len(pictures)))]
        prepared = np.concatenate([prepare(picture, spec) for picture, _ in chosen])
        yield torch.from_numpy(prepared), torch.tensor([label for _, label in chosen])
