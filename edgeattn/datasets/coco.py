"""Boxes and masks from COCO's JSON (Lin et al. 2014, arXiv:1405.0312; cocodataset.org/#format-data).

DATA/instances_train.json       with its pictures in DATA/train, DATA/train/images, DATA/images/train, DATA/images, DATA
DATA/annotations/instances_train2017.json   with its pictures in DATA/train2017, or as above
DATA/train/_annotations.coco.json           with its pictures beside it
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgeattn.datasets.annotated import (
    Annotations,
    Gathered,
    part_of,
    read_pictures,
)
from edgeattn.datasets.folder import PART_NAMES
from edgeattn.datasets.labelled import distinct
from edgeattn.datasets.outlines import CleanOutline, check_outline, clean_outline
from edgeattn.errors import DataError

USUAL = ("instances_*.json", "*_annotations.coco.json")
"""Names by which annotation files of boxes go; where there are such, other files beside them are not looked at."""
_KEYS = ("images", "annotations", "categories")


@dataclass(frozen=True)
class _File:
    path: Path
    part: str
    images: dict[Any, dict[str, Any]]
    annotations: list[dict[str, Any]]
    categories: dict[int, str]


def coco_files(root: Path) -> list[Path]:
    """The annotation files of a folder, sorted; of a file: itself. Empty where there are none."""
    if root.is_file():
        return [root] if root.suffix == ".json" else []
    folders = [root, root / "annotations", *(path for path in root.iterdir() if path.is_dir() and part_of(path.name))]
    usual = sorted({path for folder in folders for name in USUAL for path in folder.glob(name)})
    return usual or [path for folder in folders for path in sorted(folder.glob("*.json")) if _is_coco(path)]


def _is_coco(path: Path) -> bool:
    try:
        held = json.loads(path.read_bytes())
    except ValueError:
        return False
    return isinstance(held, dict) and all(isinstance(held.get(key), list) for key in _KEYS)


def read_coco(
    root: str | Path, *, skip_missing: bool = False, progress: Callable[[int, int], None] | None = None
) -> Annotations:
    """Read a folder with COCO's JSON, or one such file; every picture is decoded once.

    Classes are put in the order of their ids, without the gaps. Part of a picture is what its file's name tells.

    Args:
        root: the folder or file.
        skip_missing: leave out pictures that are missing or cannot be read, and say which.
        progress: called with (pictures read, pictures in all).

    Raises:
        DataError: no such file; one that is not of this form, or names classes or pictures that it does not list; pictures
            that are missing or of another size than it says.
    """
    root = Path(root)
    if not root.exists():
        raise DataError(f"{root}: no such file or folder; give a folder with COCO's JSON, or the file")
    paths = coco_files(root)
    if not paths:
        raise DataError(f"{root}: holds no COCO JSON; it needs images, annotations and categories")
    files = [_load(path) for path in paths]
    _check_parts(root, files)
    categories = _categories(files)
    places = {category: place for place, category in enumerate(sorted(categories))}
    homes = {file.path: _home(file) for file in files}
    pictures = [homes[file.path] / image["file_name"] for file in files for image in file.images.values()]
    found = read_pictures(root, pictures, skip_missing=skip_missing, progress=progress)
    masked = any(annotation.get("segmentation") for file in files for annotation in file.annotations)
    gathered = Gathered(distinct([categories[category] for category in sorted(categories)]), masked)
    for file in files:
        of_image = defaultdict(list)
        for annotation in file.annotations:
            of_image[annotation["image_id"]].append(annotation)
        for key, image in file.images.items():
            path, own = homes[file.path] / image["file_name"], of_image[key]
            if (seen := found.prints.get(path)) is not None:
                _check_size(file, image, path, seen.shape)
                outlines = [_outline(file, one, seen.shape) for one in own]
                gathered.undrawn += sum(one.dropped for one in outlines)
                gathered.add(
                    path,
                    file.part,
                    seen,
                    boxes=[_box(file, one) for one in own],
                    labels=[places[one["category_id"]] for one in own],
                    crowd=[bool(one.get("iscrowd", 0)) for one in own],
                    outlines=[one.outline for one in outlines],
                )
    return gathered.annotations(root, found.skipped)


def _load(path: Path) -> _File:
    try:
        held = json.loads(path.read_bytes())
        _check_keys(path, held)
        images = {image["id"]: {**image, "file_name": str(image["file_name"])} for image in held["images"]}
        categories = {int(category["id"]): str(category["name"]) for category in held["categories"]}
        file = _File(
            path,
            part_of(path.stem) or PART_NAMES.get(path.parent.name.lower(), ""),
            images,
            held["annotations"],
            categories,
        )
        _check_ids(file, len(held["images"]))
    except DataError:
        raise
    except (ValueError, TypeError, KeyError, AttributeError, OSError) as error:
        raise DataError(f"{path}: is no COCO JSON ({type(error).__name__}: {error})") from error
    return file


def _check_keys(path: Path, held: Any) -> None:
    missing = [key for key in _KEYS if not (isinstance(held, dict) and isinstance(held.get(key), list))]
    if missing:
        raise DataError(f"{path}: has no list of {' and of '.join(missing)}; it is no COCO JSON of boxes")


def _check_ids(file: _File, count: int) -> None:
    if not file.images or not file.categories:
        raise DataError(f"{file.path}: lists no {'images' if file.categories else 'categories'}")
    if len(file.images) < count:
        raise DataError(f"{file.path}: {count - len(file.images)} images have an id that another one has, too")
    unknown = Counter(one["category_id"] for one in file.annotations if one["category_id"] not in file.categories)
    if unknown:
        raise DataError(f"{file.path}: annotations have category ids that it does not list: {_some(unknown)}")
    unknown = Counter(one["image_id"] for one in file.annotations if one["image_id"] not in file.images)
    if unknown:
        raise DataError(f"{file.path}: annotations have image ids that it does not list: {_some(unknown)}")


def _some(ids: Iterable[Any]) -> str:
    named = [str(one) for one in ids]
    return ", ".join(named[:5]) + (f" and {len(named) - 5} more" if len(named) > 5 else "")


def _check_parts(root: Path, files: Sequence[_File]) -> None:
    for part, count in Counter(file.part for file in files).items():
        if count > 1:
            same = " and ".join(file.path.name for file in files if file.part == part)
            raise DataError(f"{root}: {same} are both {part or 'of no part'}; give one of the files, or remove one")


def _categories(files: Sequence[_File]) -> dict[int, str]:
    names: dict[int, str] = {}
    for file in files:
        for category, name in file.categories.items():
            if names.setdefault(category, name) != name:
                raise DataError(
                    f"{file.path}: category {category} is '{name}', but '{names[category]}' in {files[0].path.name}; "
                    "give all parts the same ids"
                )
    return names


def _home(file: _File) -> Path:
    """The folder that holds most of the pictures of a file."""
    base, part = file.path.parent, file.path.stem.removeprefix("instances_")
    bases = (base, base.parent) if base.name == "annotations" else (base,)
    below = ("", part, f"{part}/images", f"images/{part}", "images")
    homes = [home / folder for home in bases for folder in below]
    counts = [sum((home / image["file_name"]).is_file() for image in file.images.values()) for home in homes]
    return homes[1] if not max(counts) else homes[counts.index(max(counts))]


def _check_size(file: _File, image: dict[str, Any], path: Path, shape: tuple[int, int]) -> None:
    told = (image.get("height", shape[0]), image.get("width", shape[1]))
    if told != shape:
        turned = "; boxes of the picture before its EXIF turn do not fit it" if told == shape[::-1] else ""
        raise DataError(
            f"{path} is {shape[1]} x {shape[0]}, but {told[1]} x {told[0]} in {file.path.name}; "
            f"give the picture that was annotated{turned}"
        )


def _box(file: _File, annotation: dict[str, Any]) -> list[float]:
    try:
        x, y, width, height = (float(value) for value in annotation["bbox"])
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(
            f"{file.path}: annotation {annotation.get('id')} needs a bbox [x, y, width, height] in pixels, "
            f"not {annotation.get('bbox')}"
        ) from error
    if not np.isfinite([x, y, width, height]).all():
        raise DataError(f"{file.path}: annotation {annotation.get('id')} has the bbox {annotation['bbox']}")
    return [x, y, x + width, y + height]


def _outline(file: _File, annotation: dict[str, Any], shape: tuple[int, int]) -> CleanOutline:
    try:
        clean = clean_outline(annotation.get("segmentation"))
        if clean.outline is not None:
            check_outline(clean.outline, shape)
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"{file.path}: the segmentation of annotation {annotation.get('id')}: {error}") from error
    return clean
