"""Pictures with boxes and masks, in one form whatever file they come from.

Legend of shapes: N objects of a picture, H W the picture; x to the right, y down, (0, 0) the outer corner of the first pixel.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from edgeattn.datasets.folder import PART_NAMES, Fingerprint, fingerprints, reason
from edgeattn.datasets.outlines import Outline, draw_outline
from edgeattn.errors import DataError

Boxes = NDArray[np.float32]
Indices = NDArray[np.int64]
ClassMap = NDArray[np.uint8]

IGNORE = 255
"""In a map of classes: a pixel that counts neither as right nor as wrong."""
BACKGROUND = "background"
"""Name of class 0 in maps of classes that are drawn from outlines; a class of the same name is no other one."""
SLACK = 0.5
"""Pixels by which a box may stand over the picture's edge before it counts as clipped: boxes are rounded somehow."""
_NAMED = 5


class Masks(Protocol):
    """The masks of a picture."""

    def class_map(self) -> ClassMap:
        """The class of every pixel, (H, W): a place in `Annotations.map_names`, or IGNORE."""


@dataclass(frozen=True, eq=False)
class Annotated:
    """One picture with its objects."""

    path: Path
    """Where it lies."""
    shape: tuple[int, int]
    """Its height and width in pixels, upright."""
    boxes: Boxes
    """(N, 4): left, top, right and bottom in pixels, within the picture."""
    labels: Indices
    """(N,): place of each object's class in `Annotations.names`."""
    crowd: NDArray[np.bool_]
    """(N,): a region of many objects, which is neither to be learnt nor to be counted as missed (COCO's `iscrowd`)."""
    masks: Masks | None = None
    """Where the objects are seen, drawn or read when asked; with boxes, `Outlines` in their order."""
    part: str = ""
    """`train`, `validation` or `test` where the folder or file says so, else empty."""
    digest: str = ""
    """sha256 of the file."""
    thumbnail: bytes = field(default=b"", repr=False)
    """THUMBNAIL x THUMBNAIL grey bytes, as of `folder.Sample`."""

    def class_map(self) -> ClassMap:
        """The class of every pixel, as of `Masks`.

        Raises:
            DataError: there are no masks.
        """
        if self.masks is None:
            raise DataError(
                f"{self.path} has no mask; segmentation learns from masks, or from outlines in COCO's or YOLO's files"
            )
        return self.masks.class_map()


@dataclass(frozen=True, eq=False)
class Annotations:
    """What a folder of annotated pictures holds."""

    root: Path
    """The folder, or the annotation file."""
    names: tuple[str, ...]
    """Names of the classes of boxes, without gaps."""
    pictures: tuple[Annotated, ...]
    """Pictures that can be read; one without objects is a negative."""
    skipped: tuple[tuple[Path, str], ...] = ()
    """Pictures that are left out, each with its reason."""
    clipped: int = 0
    """Boxes that stood over the edge of their picture and were cut there."""
    dropped: int = 0
    """Boxes without area in their picture, which are left out."""
    undrawn: int = 0
    """Polygons of fewer than three points, which are left out of their outline."""
    map_names: tuple[str, ...] = ()
    """Names of the classes in maps of classes; empty where there are no masks."""
    remarks: tuple[str, ...] = ()
    """What else its reader has to say, a line each."""

    @property
    def counts(self) -> dict[str, int]:
        """Boxes per class, crowds left out."""
        labels = [label for one in self.pictures for label in one.labels[~one.crowd].tolist()]
        return dict(zip(self.names, np.bincount(labels, minlength=len(self.names)).tolist(), strict=True))

    @property
    def notes(self) -> tuple[str, ...]:
        """What the user should know, a line each."""
        counts = (
            (self.clipped, ("box", "boxes"), "over the edge of the picture, cut there"),
            (self.dropped, ("box", "boxes"), "without area in the picture, left out"),
            (self.undrawn, ("polygon", "polygons"), "of fewer than three points, left out"),
        )
        return (
            *(f"{count} {words[count != 1]} {what}" for count, words, what in counts if count),
            *self.remarks,
            *([f"{len(self.skipped)} pictures left out: {listed(self.skipped)}"] if self.skipped else []),
        )


def listed(skipped: Sequence[tuple[Path, str]]) -> str:
    """The first few pictures that are left out, each with its reason."""
    some = ", ".join(f"{path} ({why})" for path, why in skipped[:_NAMED])
    return some + (f" and {len(skipped) - _NAMED} more" if len(skipped) > _NAMED else "")


@dataclass(frozen=True, eq=False)
class Outlines:
    """Masks of objects by their outlines."""

    shape: tuple[int, int]
    """Height and width of the picture in pixels."""
    outlines: tuple[Outline | None, ...]
    """One an object; None where the file draws none."""
    boxes: Boxes
    """(N, 4): the objects' boxes."""
    classes: Indices
    """(N,): place of each object's class in `Annotations.map_names`."""

    def instances(self) -> NDArray[np.bool_]:
        """The mask of each object, (N, H, W); empty where there is no outline."""
        empty = np.zeros(self.shape, bool)
        drawn = [empty if outline is None else draw_outline(outline, self.shape) for outline in self.outlines]
        return np.stack(drawn) if drawn else np.zeros((0, *self.shape), bool)

    def class_map(self) -> ClassMap:
        """The class of every pixel, (H, W), 0 where nothing is; small objects lie over large ones.

        What lies in the box of an object without outline is IGNORE.

        Raises:
            DataError: there are more classes than a byte tells apart.
        """
        if len(self.classes) and self.classes.max() >= IGNORE:
            raise DataError(
                f"class {self.classes.max()} has no place in a map of bytes; take {IGNORE - 1} classes at most"
            )
        drawn = np.zeros(self.shape, np.uint8)
        for outline, box in zip(self.outlines, self.boxes, strict=True):
            if outline is None:
                left, top, right, bottom = np.rint(box).astype(int)
                drawn[top:bottom, left:right] = IGNORE
        masks = self.instances()
        for i in np.argsort(-masks.sum(axis=(1, 2)), kind="stable"):
            drawn[masks[i]] = self.classes[i]
        return drawn


class Clean(NamedTuple):
    """Boxes that can be used."""

    boxes: Boxes
    """(M, 4), M <= N."""
    kept: NDArray[np.bool_]
    """(N,): which they are."""
    clipped: int
    """How many of them were cut at the edge."""


def clean_boxes(boxes_N4: NDArray[np.floating], shape: tuple[int, int]) -> Clean:
    """Cut boxes (left, top, right, bottom in pixels) at the edge of a picture (H, W), and drop those without area."""
    boxes = np.asarray(boxes_N4, np.float64).reshape(-1, 4)
    cut = np.clip(boxes, 0, [shape[1], shape[0]] * 2)
    kept = (cut[:, 2] > cut[:, 0]) & (cut[:, 3] > cut[:, 1])
    clipped = (np.abs(cut - boxes) > SLACK).any(axis=1) & kept
    return Clean(cut[kept].astype(np.float32), kept, int(clipped.sum()))


@dataclass
class Gathered:
    """Pictures as a reader finds them, their boxes cleaned."""

    names: tuple[str, ...]
    """Names of the classes of boxes."""
    masked: bool
    """Whether there are outlines."""
    pictures: list[Annotated] = field(default_factory=list)
    """Those so far."""
    clipped: int = 0
    """Boxes that were cut so far."""
    dropped: int = 0
    """Boxes that were left out so far."""
    undrawn: int = 0
    """Polygons that were left out so far."""
    remarks: list[str] = field(default_factory=list)
    """What else is to be said, a line each."""

    def add(
        self,
        path: Path,
        part: str,
        seen: Fingerprint,
        *,
        boxes: Sequence[Sequence[float]] | NDArray[np.floating],
        labels: Sequence[int],
        crowd: Sequence[bool],
        outlines: Sequence[Outline | None],
    ) -> None:
        """Add one picture and all that its file says of each object; boxes are left, top, right, bottom in pixels."""
        clean = clean_boxes(np.asarray(boxes, np.float64), seen.shape)
        self.clipped += clean.clipped
        self.dropped += int((~clean.kept).sum())
        of, crowds = np.array(labels, np.int64)[clean.kept], np.array(crowd, bool)[clean.kept]
        drawn = tuple(outline for outline, kept in zip(outlines, clean.kept, strict=True) if kept)
        masks = Outlines(seen.shape, drawn, clean.boxes, self._places[of]) if self.masked else None
        self.pictures.append(
            Annotated(path, seen.shape, clean.boxes, of, crowds, masks, part, seen.digest, seen.thumbnail)
        )

    def annotations(self, root: Path, skipped: Sequence[tuple[Path, str]]) -> Annotations:
        """All of it."""
        return Annotations(
            root,
            self.names,
            tuple(self.pictures),
            tuple(skipped),
            self.clipped,
            self.dropped,
            self.undrawn,
            self._map_names if self.masked else (),
            tuple(self.remarks),
        )

    @functools.cached_property
    def _map_names(self) -> tuple[str, ...]:
        return (BACKGROUND, *(name for name in self.names if name != BACKGROUND))

    @functools.cached_property
    def _places(self) -> Indices:
        """Of each class of boxes, its place in maps of classes."""
        return np.array([self._map_names.index(name) for name in self.names], np.int64)


class Readable(NamedTuple):
    """Pictures that can be read."""

    prints: dict[Path, Fingerprint]
    """What each is."""
    skipped: tuple[tuple[Path, str], ...]
    """Those that cannot, each with its reason."""


def read_pictures(
    source: Path, paths: Sequence[Path], *, skip_missing: bool, progress: Callable[[int, int], None] | None = None
) -> Readable:
    """Decode every picture that `source` names once, so that a broken or missing one shows now.

    Raises:
        DataError: some are missing or cannot be read, and are not to be skipped; or all are.
    """
    prints, skipped = {}, []
    for path, seen in zip(paths, fingerprints(paths, progress), strict=True):
        if isinstance(seen, Fingerprint):
            prints[path] = seen
        else:
            skipped.append((path, reason(path, seen) if path.exists() else "missing"))
    if not prints:
        raise DataError(f"{source}: none of its {len(paths)} pictures can be read: {listed(skipped)}")
    if skipped and not skip_missing:
        raise DataError(
            f"{source}: {len(skipped)} of {len(paths)} pictures are missing or cannot be read: {listed(skipped)}; "
            "add them, or leave them out with --skip-missing"
        )
    return Readable(prints, tuple(skipped))


def part_of(name: str) -> str:
    """The part that the name of a folder or file tells, as `instances_val2017` does; empty where it tells none."""
    words = "".join(c if c.isalpha() else " " for c in name.lower()).split()
    return next((PART_NAMES[word] for word in words if word in PART_NAMES), "")
