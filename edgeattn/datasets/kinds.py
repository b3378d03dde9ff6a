"""Which kind of labelled pictures a folder holds, and reading boxes and masks of any kind."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Literal

from edgeattn.datasets.annotated import Annotations
from edgeattn.datasets.coco import coco_files, read_coco
from edgeattn.datasets.labelled import class_folders
from edgeattn.datasets.masks import is_masks, mask_folders, read_masks
from edgeattn.datasets.yolo import is_yolo, read_yolo
from edgeattn.errors import DataError
from edgeattn.spec import Task

Kind = Literal["classes", "coco", "yolo", "masks"]

_LAYOUTS = (
    "one folder per class, COCO's JSON beside its pictures, YOLO's images/ and labels/ with data.yaml or classes.txt, "
    "or images/ and masks/ with classes.csv"
)


def recognise(root: str | Path) -> Kind:
    """Tell the kind of a folder, or of an annotation file.

    COCO's JSON beside class folders tells where things are in pictures of a classifier, too: it is taken for COCO.

    Raises:
        DataError: there is nothing there, nothing of a known kind, or nothing that names the classes.
    """
    root = Path(root)
    if not root.exists():
        raise DataError(f"{root}: no such file or folder; give {_LAYOUTS}")
    if coco_files(root):
        return "coco"
    if is_masks(root):  # before YOLO's: masks may lie in `labels`, too
        return "masks"
    if is_yolo(root):
        return "yolo"
    if root.is_dir() and mask_folders(root):
        raise DataError(f"{root}: has masks beside its pictures, but no classes.csv or classes.txt names their classes")
    if (root / "images").is_dir() and (root / "labels").is_dir():
        raise DataError(f"{root}: has images and labels, but no data.yaml or classes.txt names their classes")
    if root.is_dir() and class_folders(root):
        return "classes"
    raise DataError(f"{root}: holds nothing that is known; give {_LAYOUTS}")


def has_no_annotations(root: Path, task: Task) -> bool:
    """Whether a folder holds pictures alone: no folders, whose names would label them, and no COCO JSON for the task."""
    return root.is_dir() and not class_folders(root) and (task == "classify" or not coco_files(root))


def read_annotations(
    root: str | Path, *, skip_missing: bool = False, progress: Callable[[int, int], None] | None = None
) -> Annotations:
    """Read boxes and masks of whichever kind; every picture is decoded once.

    Args:
        root: the folder, or the annotation file.
        skip_missing: leave out what lacks its picture, or cannot be read, and say which.
        progress: called with (pictures read, pictures in all).

    Raises:
        DataError: it holds neither boxes nor masks, or see the readers.
    """
    kind = recognise(root)
    if kind == "classes":
        raise DataError(f"{root}: holds class folders, neither boxes nor masks; give {_LAYOUTS.partition(', ')[2]}")
    reader = {"coco": read_coco, "yolo": read_yolo, "masks": read_masks}[kind]
    return reader(root, skip_missing=skip_missing, progress=progress)
