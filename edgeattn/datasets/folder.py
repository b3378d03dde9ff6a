"""A plain folder of class folders, read once: what is there, what cannot be read, and a fingerprint of each picture.

PHOTOS/apple/IMG_1.jpg          the name of a class folder is the label; folders below it belong to it
PHOTOS/pear/garden/IMG_7.png
PHOTOS/train/apple/IMG_1.jpg    or ready parts: train, and val (valid, validation), test, as far as they are there
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from edgeattn._cv2 import cv2
from edgeattn.errors import DataError, PictureError
from edgeattn.imaging import HEIC_SUFFIXES, SUFFIXES, decode_picture

THUMBNAIL = 16
"""Pixels across a thumbnail, which tells near-duplicates."""
PART_NAMES = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation"), "validation"),
    **dict.fromkeys(("test", "testing"), "test"),
}
_LAYOUT = "put the pictures into one folder per class, as in PHOTOS/apple/1.jpg and PHOTOS/pear/1.jpg"


@dataclass(frozen=True)
class Fingerprint:
    """What tells a picture file from others."""

    shape: tuple[int, int]
    """Its height and width in pixels, upright."""
    digest: str
    """sha256 of the file."""
    thumbnail: bytes
    """THUMBNAIL x THUMBNAIL grey bytes."""


@dataclass(frozen=True)
class Sample:
    """One labelled picture file."""

    path: Path
    """Where it lies."""
    label: int
    """Place of its class in the labels."""
    part: str = ""
    """`train`, `validation` or `test` where the folder says so, else empty."""
    digest: str = ""
    """sha256 of the file."""
    thumbnail: bytes = field(default=b"", repr=False)
    """THUMBNAIL x THUMBNAIL grey bytes."""


@dataclass(frozen=True)
class Listing:
    """What a folder of class folders holds."""

    root: Path
    """The folder."""
    labels: tuple[str, ...]
    """Names of the class folders; 10 follows 9."""
    samples: tuple[Sample, ...]
    """Pictures that can be read, class by class."""
    skipped: tuple[tuple[Path, str], ...]
    """Pictures that are left out, each with its reason."""

    @property
    def counts(self) -> dict[str, int]:
        """Pictures per class."""
        counts = np.bincount([sample.label for sample in self.samples], minlength=len(self.labels))
        return dict(zip(self.labels, counts.tolist(), strict=True))


def natural(name: str) -> tuple[list[tuple[int, int, str]], str]:
    """Sort key under which `10` follows `9`."""
    pieces = re.findall(r"\d+|\D+", name)
    return [(0, int(p), "") if p.isdecimal() else (1, 0, p.casefold()) for p in pieces], name


def scan(
    root: str | Path, *, skip_unreadable: bool = True, progress: Callable[[int, int], None] | None = None
) -> Listing:
    """List a folder of class folders; every picture is decoded once, so that a broken one shows now.

    Args:
        root: the folder; one with `train` in it (and `val`, `test`) and class folders below is taken as ready parts.
        skip_unreadable: leave out pictures that cannot be read and say which; else the first one raises.
        progress: called with (pictures read, pictures in all).

    Raises:
        DataError: no such folder, no class folders, one class only, a class without a picture that can be read.
    """
    root = Path(root)
    if not root.is_dir():
        raise DataError(f"{root}: {'not a folder' if root.exists() else 'no such folder'}; {_LAYOUT}")
    parts = ready_parts(root)
    homes = [(part, folder) for part, base in (parts or {"": root}).items() for folder in _folders(base)]
    labels = tuple(sorted({folder.name for _, folder in homes}, key=natural))
    _check_layout(root, labels)
    found = [
        Sample(path, labels.index(folder.name), part)
        for part, folder in sorted(homes, key=lambda home: (natural(home[1].name), home[0]))
        for path in _pictures(folder)
    ]
    samples, skipped = _read_all(found, skip_unreadable, progress)
    astray = [(path, "lies outside the class folders") for base in (root, *parts.values()) for path in _loose(base)]
    listing = Listing(root, labels, tuple(samples), (*skipped, *astray))
    _check_classes(listing)
    return listing


def ready_parts(root: Path) -> dict[str, Path]:
    """Folders of the parts that `root` is already split into, by part; empty where it is not."""
    folders = _folders(root)
    parts = {PART_NAMES[f.name.lower()]: f for f in folders if f.name.lower() in PART_NAMES}
    ready = "train" in parts and len(parts) == len(folders) and len(parts) > 1 and all(map(_folders, parts.values()))
    return parts if ready else {}


def _hidden(name: str) -> bool:
    return name.startswith(".") or name == "__MACOSX"


def _folders(base: Path) -> list[Path]:
    return [path for path in base.iterdir() if path.is_dir() and not _hidden(path.name)]


def _is_picture(path: Path) -> bool:
    return path.suffix.lower() in SUFFIXES | HEIC_SUFFIXES and path.is_file()


def _loose(base: Path) -> list[Path]:
    return sorted(path for path in base.iterdir() if not _hidden(path.name) and _is_picture(path))


def _pictures(folder: Path) -> list[Path]:
    inside = (path for path in folder.rglob("*") if not any(map(_hidden, path.relative_to(folder).parts)))
    return sorted((path for path in inside if _is_picture(path)), key=lambda path: natural(path.as_posix()))


def _check_layout(root: Path, labels: Sequence[str]) -> None:
    if not labels and _loose(root):
        raise DataError(f"{root}: the pictures lie in no class folder; {_LAYOUT}")
    if not labels:
        raise DataError(f"{root}: the folder is empty; {_LAYOUT}")
    if len(labels) == 1:
        raise DataError(f"{root}: there is one class only ('{labels[0]}'); add a folder with pictures of another one")


def _read_all(
    found: Sequence[Sample], skip_unreadable: bool, progress: Callable[[int, int], None] | None
) -> tuple[list[Sample], list[tuple[Path, str]]]:
    samples, skipped = [], []
    for sample, seen in zip(found, fingerprints([sample.path for sample in found], progress), strict=True):
        if isinstance(seen, Fingerprint):
            samples.append(Sample(sample.path, sample.label, sample.part, seen.digest, seen.thumbnail))
        elif skip_unreadable:
            skipped.append((sample.path, reason(sample.path, seen)))
        else:
            raise seen
    return samples, skipped


def reason(path: Path, error: PictureError) -> str:
    """Why a picture cannot be read, without its name."""
    return str(error).removeprefix(f"{path}: ")


def fingerprints(
    paths: Sequence[Path], progress: Callable[[int, int], None] | None = None
) -> Iterator[Fingerprint | PictureError]:
    """Decode every picture once, in order, several at a time: what it is, or why it cannot be read.

    Args:
        paths: the pictures.
        progress: called with (pictures read, pictures in all).
    """
    pool = ThreadPoolExecutor(os.cpu_count())  # decoding lets other threads run
    try:
        for done, found in enumerate(pool.map(_fingerprint, paths), 1):
            yield found
            if progress is not None:
                progress(done, len(paths))
    finally:
        pool.shutdown(cancel_futures=True)


def _fingerprint(path: Path) -> Fingerprint | PictureError:
    try:
        data = path.read_bytes()
        picture = decode_picture(data, str(path))
    except OSError as error:
        return PictureError(f"{path}: cannot be read ({error.strerror})")
    except PictureError as error:
        return error
    grey = cv2.cvtColor(picture, cv2.COLOR_BGR2GRAY)
    thumbnail = cv2.resize(grey, (THUMBNAIL, THUMBNAIL), interpolation=cv2.INTER_AREA)
    height, width = picture.shape[:2]
    return Fingerprint((height, width), hashlib.sha256(data).hexdigest(), thumbnail.tobytes())


def _check_classes(listing: Listing) -> None:
    left = [path for path, _ in listing.skipped]
    if not listing.samples and left:
        path, reason = listing.skipped[0]
        raise DataError(f"{listing.root}: none of the {len(left)} pictures can be used; the first, {path}: {reason}")
    if not listing.samples:
        raise DataError(f"{listing.root}: there is no picture in the class folders; {_LAYOUT}")
    for label, count in listing.counts.items():
        if count == 0:
            bad = sum(label in path.relative_to(listing.root).parts[:-1] for path in left)
            why = f"none of its {bad} pictures can be read" if bad else "it is empty"
            raise DataError(f"{listing.root}: class '{label}' has no picture ({why}); add some or remove its folder")
