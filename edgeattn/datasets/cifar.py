"""CIFAR-10 and CIFAR-100 as their authors publish them: the binary version (Krizhevsky 2009).

data_batch_1.bin ... data_batch_5.bin  test_batch.bin  batches.meta.txt     10,000 records each of 1 + 3,072 bytes
train.bin  test.bin  fine_label_names.txt                                   of 2 + 3,072 bytes, coarse label first

A record's pixels are the red plane, the green, the blue, each 32 rows of 32.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgeattn.errors import DataError

SIDE = 32
PIXELS = 3 * SIDE * SIDE
VALIDATION = 0.1
"""Share of the training pictures of each class that is held out."""


@dataclass(frozen=True)
class Part:
    """Pictures of one part."""

    pictures: NDArray[np.uint8]
    """(N, 32, 32, 3) BGR bytes."""
    labels: NDArray[np.int64]
    """(N,)."""


@dataclass(frozen=True)
class Cifar:
    """One of the two sets, split three ways."""

    labels: tuple[str, ...]
    """Names of the classes."""
    train: Part
    """Nine tenths of the published training part."""
    validation: Part
    """The last tenth, the same number of every class, drawn by the seed."""
    test: Part
    """The published test part."""


def is_cifar(root: Path) -> bool:
    """Whether a folder holds the binary version of one of the sets."""
    return (root / "data_batch_1.bin").is_file() or (root / "train.bin").is_file()


def read_cifar(root: Path, *, seed: int = 0) -> Cifar:
    """Read a folder of the binary version.

    Raises:
        DataError: a file is missing or of a wrong length.
    """
    ten = (root / "data_batch_1.bin").is_file()
    names = [f"data_batch_{i}.bin" for i in range(1, 6)] if ten else ["train.bin"]
    labels = _names(root / ("batches.meta.txt" if ten else "fine_label_names.txt"))
    parts = [_read(root / name, 1 if ten else 2, len(labels)) for name in names]
    whole = Part(np.concatenate([p.pictures for p in parts]), np.concatenate([p.labels for p in parts]))
    test = _read(root / ("test_batch.bin" if ten else "test.bin"), 1 if ten else 2, len(labels))
    held = _held_out(whole.labels, seed)
    return Cifar(
        labels, Part(whole.pictures[~held], whole.labels[~held]), Part(whole.pictures[held], whole.labels[held]), test
    )


def _names(file: Path) -> tuple[str, ...]:
    if not file.is_file():
        raise DataError(f"{file} is missing, which names the classes; unpack the whole binary version")
    return tuple(line.strip() for line in file.read_text().splitlines() if line.strip())


def _read(file: Path, head: int, classes: int) -> Part:
    if not file.is_file():
        raise DataError(f"{file} is missing; unpack the whole binary version")
    data = np.fromfile(file, np.uint8)
    if not len(data) or len(data) % (head + PIXELS):
        raise DataError(f"{file} has {len(data)} bytes, no multiple of {head + PIXELS}; fetch the binary version anew")
    rows = data.reshape(-1, head + PIXELS)
    labels = rows[:, head - 1].astype(np.int64)
    if labels.max() >= classes:
        raise DataError(
            f"{file} has label {labels.max()}, and there are {classes} classes; fetch the binary version anew"
        )
    planes = rows[:, head:].reshape(-1, 3, SIDE, SIDE)
    return Part(np.ascontiguousarray(planes.transpose(0, 2, 3, 1)[..., ::-1]), labels)


def _held_out(labels: NDArray[np.int64], seed: int) -> NDArray[np.bool_]:
    held = np.zeros(len(labels), bool)
    rng = np.random.default_rng(seed)
    for label in np.unique(labels):
        places = np.flatnonzero(labels == label)
        held[rng.permutation(places)[: max(1, round(VALIDATION * len(places)))]] = True
    return held
